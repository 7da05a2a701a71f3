"""Event files are what TensorBoard reads: framing, checksums, values and steps."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.tracking.event_file import NAME, EventFile, crc32c


@pytest.mark.parametrize(
    ("data", "expected"),  # RFC 3720, appendix B.4
    [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_the_checksum_is_that_of_the_standard(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def fields(message: bytes) -> dict[int, list[bytes | int]]:
    """A message of protocol buffers, taken apart: values by number of the field."""
    found: dict[int, list[bytes | int]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        field, kind = divmod(varint(), 8)
        if kind == 0:
            value: bytes | int = varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            value = message[at : at + size]
            at += size
        found.setdefault(field, []).append(value)
    return found


def records(data: bytes) -> list[dict[int, list[bytes | int]]]:
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        for start, count in ((at, 8), (at + 12, size)):
            (masked,) = struct.unpack_from("<I", data, start + count)
            turned = (masked - 0xA282EAD8) & 0xFFFFFFFF
            assert (turned >> 17 | turned << 15) & 0xFFFFFFFF == crc32c(data[start : start + count])
        found.append(fields(data[at + 12 : at + 12 + size]))
        at += 16 + size
    return found


def test_points_and_images_are_read_back(tmp_path: Path) -> None:
    written = io.BytesIO()
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(written, "png")
    events = EventFile(str(tmp_path))
    events.scalars({"loss/joint": 0.25, "nothing": float("nan")}, 300, 12.5)
    events.image("panel", written.getvalue(), 300)
    events.publish(now=True)
    version, point, panel = records((tmp_path / NAME).read_bytes())
    assert version[3] == [b"brain.Event:2"]
    assert struct.unpack("<d", point[1][0]) == (12.5,)  # type: ignore[arg-type]
    assert point[2] == panel[2] == [300]
    value = fields(fields(point[5][0])[1][0])  # type: ignore[arg-type]
    assert value == {1: [b"loss/joint"], 2: [struct.pack("<f", 0.25)]}
    shown = fields(fields(fields(panel[5][0])[1][0])[4][0])  # type: ignore[arg-type]
    assert shown == {1: [3], 2: [5], 3: [4], 4: [written.getvalue()]}


def test_a_resumed_run_writes_each_point_once(tmp_path: Path) -> None:
    events = EventFile(str(tmp_path))
    for step in (1, 2, 3):
        events.scalars({"loss": 1.0}, step, 0.0)
    events.clear()
    for step in (1, 2, 3, 4):
        events.scalars({"loss": 1.0}, step, 0.0)
    events.publish(now=True)
    steps = [each[2][0] for each in records((tmp_path / NAME).read_bytes())]
    assert steps == [0, 1, 2, 3, 4]


def test_what_no_history_brings_again_outlives_a_restart(tmp_path: Path) -> None:
    events = EventFile(str(tmp_path))
    events.scalars({"loss": 1.0}, 1, 0.0)
    events.scalars({"probe/knn_accuracy": 0.5}, 1, 0.0, in_history=False)
    events.clear()
    events.scalars({"loss": 1.0}, 1, 0.0)
    events.publish(now=True)
    assert len(records((tmp_path / NAME).read_bytes())) == 3


def test_a_file_without_news_is_not_written_again(tmp_path: Path) -> None:
    events = EventFile(str(tmp_path))
    events.scalars({"loss": 1.0}, 1, 0.0)
    events.publish(now=True)
    (tmp_path / NAME).unlink()
    events.publish(now=True)
    assert not (tmp_path / NAME).exists()
    events.scalars({"loss": 1.0}, 2, 0.0)
    events.publish(now=True)
    assert (tmp_path / NAME).exists()
