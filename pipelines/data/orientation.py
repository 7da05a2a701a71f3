"""Which way up an image is shown, as its metadata says and usual viewers do it.

EXIF comes first: a segment of a JPEG, the chunk `eXIf` of a PNG wherever it stands, or the text in
which ImageMagick keeps it there. Where EXIF has none, that of XMP counts. What cannot be read is
none. Numbers 1 to 8: CIPA DC-008 (EXIF 2.32), tag 0x0112.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

UPRIGHT = 1
TAG = 0x0112
BLOCK_BYTES = 1 << 16  # an EXIF block is one JPEG segment
TEXT_BYTES = 1 << 20  # of an inflated PNG text
MAX_SEGMENTS = 4096  # of a JPEG before its image data
START_OF_SCAN = 0xDA
FILL, STANDALONE = 0xFF, (0x01, *range(0xD0, 0xD8))  # bytes and markers without a length
EXIF_MARK = b"Exif\0\0"
XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"
XMP_KEYWORD = b"XML:com.adobe.xmp"
RAW_PROFILE = b"Raw profile type "
XMP_TAG = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([0-9])")
TYPES = {1: "B", 3: "H", 4: "I"}  # of an EXIF value: byte, short, long
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker of each segment of a JPEG and where its content begins; the first scan is the last.

    Ends early where stray bytes stand between them.
    """
    at = 2
    for _ in range(MAX_SEGMENTS):
        head = data[at : at + 4]
        if len(head) < 4 or head[0] != 0xFF:
            return
        marker = head[1]
        if marker == FILL:
            at += 1
        elif marker in STANDALONE:
            at += 2
        else:
            yield marker, at + 4
            if marker == START_OF_SCAN:
                return
            at += 2 + int.from_bytes(head[2:], "big")


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk of a PNG, where its content begins and ends; the last may be cut."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, min(at + 8 + length, len(data))
        at += 12 + length


def of_jpeg(data: bytes) -> int:
    """Orientation of a JPEG, 1 to 8.

    Its segments are walked, since a search takes a twentieth of the image's whole time; where stray
    bytes stand between them, it has to be searched after all.
    """
    xmp = -1
    for marker, at in segments(data):
        if marker == START_OF_SCAN:
            return _in_xmp(data, xmp)
        if marker != 0xE1:
            continue
        if data.startswith(EXIF_MARK, at):
            found = of_exif(data[at + len(EXIF_MARK) : at + BLOCK_BYTES])
            if found is not None:
                return found
        elif data.startswith(XMP_MARK, at):
            xmp = at
    start = data.find(EXIF_MARK, 0, BLOCK_BYTES)
    found = None
    if start >= 0:
        start += len(EXIF_MARK)
        found = of_exif(data[start : start + BLOCK_BYTES])
    return found or _in_xmp(data, data.find(XMP_MARK, 0, BLOCK_BYTES))


def _in_xmp(data: bytes, start: int) -> int:
    return UPRIGHT if start < 0 else of_xmp(data[start : start + BLOCK_BYTES])


def of_png(data: bytes) -> int:
    """Orientation of a PNG, 1 to 8."""
    exif = xmp = None
    for kind, begin, end in chunks(data):
        if kind == b"eXIf":
            exif = of_exif(data[begin : min(end, begin + BLOCK_BYTES)]) or exif
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, text = _text(kind, data[begin:end])
            if keyword.startswith(RAW_PROFILE):
                profile = _raw_profile(text)
                exif = exif or (of_exif(profile[1]) if profile[0] else None)
                xmp = xmp or (None if profile[0] else of_xmp(profile[1]))
            elif keyword == XMP_KEYWORD:
                xmp = of_xmp(text)
    return exif or xmp or UPRIGHT


def _text(kind: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Keyword and the first MiB of the text in a chunk of a PNG."""
    keyword, _, rest = content.partition(b"\0")
    if not keyword.startswith((RAW_PROFILE, XMP_KEYWORD)):
        return keyword, b""
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # language, translated keyword
    elif packed:
        rest = rest[1:]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, TEXT_BYTES)
        except zlib.error:
            rest = b""  # a text that is damaged says nothing
    return keyword, rest[:TEXT_BYTES]


def _raw_profile(text: bytes) -> tuple[bool, bytes]:
    """Whether EXIF stands in ImageMagick's hexadecimal text, and the bytes without their mark."""
    digits = b"".join(text.split()[2:])  # behind the profile's name and its length
    try:
        profile = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return False, b""  # no such text
    return profile.startswith(EXIF_MARK), profile.removeprefix(EXIF_MARK)


def of_xmp(text: bytes) -> int:
    """Orientation by XMP, 1 to 8; 1 where it has none."""
    match = XMP_TAG.search(text)
    return _valid(int(match[1])) if match else UPRIGHT


def of_exif(block: bytes) -> int | None:
    """Orientation in an EXIF block that begins with its byte order; None where it is silent."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(f"{order}I", block, 4)
        (entries,) = struct.unpack_from(f"{order}H", block, first)
        for entry in range(entries):
            at = first + 2 + 12 * entry
            tag, kind, _ = struct.unpack_from(f"{order}HHI", block, at)
            if tag == TAG:
                (value,) = struct.unpack_from(order + TYPES.get(kind, "H"), block, at + 8)
                return _valid(value)
    except struct.error:
        return None  # a block that is cut says nothing
    return None


def _valid(value: int) -> int:
    return value if 1 <= value <= 8 else UPRIGHT


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an orientation (1 to 8) of (H, W, ...)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
