"""Curves and images as an event file that TensorBoard shows; written here, without its package.

The file is a list of records: length, checksum of the length, data, checksum of the data; the data
is an `Event` message of protocol buffers. Sources: tensorflow/core/lib/io/record_writer.cc and
tensorflow/core/util/event.proto of TensorFlow.
"""

import math
import struct
import time
from collections.abc import Mapping

from pipelines import storage

NAME = "events.out.tfevents.0000000000.context-encoder"  # TensorBoard asks for this beginning
PUBLISH_S = 10.0


class EventFile:
    """Collects events in memory and publishes the whole file now and then: stores cannot append."""

    def __init__(self, folder_uri: str) -> None:
        """Nothing in it yet."""
        self._uri = storage.join(folder_uri, NAME)
        self._published_at = 0.0
        self._history, self._others = bytearray(), bytearray()
        self._is_changed = False

    def clear(self) -> None:
        """Forget the curves of the history, which is written again when a run resumes."""
        self._history.clear()

    def scalars(
        self, values: Mapping[str, float], step: int, time_s: float, *, in_history: bool = True
    ) -> None:
        """Add one point per curve; what is not finite is left out, as in MLflow.

        `in_history`: whether a run that resumes brings them again.
        """
        found = self._history if in_history else self._others
        for name, value in values.items():
            if math.isfinite(value):
                found += record(event(time_s, step, _text(1, name) + _float(2, value)))
        self._is_changed = True

    def image(self, name: str, png: bytes, step: int) -> None:
        """Add an image."""
        width, height = struct.unpack(">II", png[16:24])  # of the PNG header
        image = _number(1, height) + _number(2, width) + _number(3, 4) + _bytes(4, png)
        self._others += record(event(time.time(), step, _text(1, name) + _bytes(4, image)))
        self._is_changed = True

    def publish(self, *, now: bool = False) -> None:
        """Write the file where there is more, at most every 10 s unless it is to be now.

        Raises:
            OSError: the storage is away.
        """
        if self._is_changed and (now or time.monotonic() - self._published_at > PUBLISH_S):
            self._published_at = time.monotonic()
            begin = record(event(0.0, version="brain.Event:2"))
            storage.publish(self._uri, begin + bytes(self._history + self._others))
            self._is_changed = False


def event(time_s: float, step: int = 0, value: bytes = b"", version: str = "") -> bytes:
    """An Event message with one value of a summary, or with the version of the file."""
    message = b"\x09" + struct.pack("<d", time_s) + _number(2, step)
    return message + (_text(3, version) if version else _bytes(5, _bytes(1, value)))


def record(data: bytes) -> bytes:
    """A message as it stands in the file."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _row(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_row(value) for value in range(256)]


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, RFC 3720, appendix B.4."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
