"""The one opener of unknown images: bytes -> upright RGB pixels, or the reason why not.

Every stage that reads images from outside opens them here, so that one file means the same pixels
everywhere. JPEG, PNG, WebP and AVIF are the only decoders that are open; the size is checked in the
header, before anything is decoded. An error of a decoder, of whatever class, is that image's fault.

JPEGs are decoded by libjpeg-turbo in its strict mode, which also notices a file that lacks its last
two bytes. A few real JPEGs are odd but whole (CMYK, stray bytes between segments, rare chroma
layouts): those go to Pillow. Of 16 bits the upper ones of those that the image uses are kept.
"""

import math
import struct
import warnings
from io import BytesIO
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from pipelines.data import orientation
from pipelines.data.images import ImageArray
from pipelines.data.orientation import SIGNATURE, START_OF_SCAN, turn_upright

Form = Literal["JPEG", "PNG", "WebP", "AVIF"]
BadKind = Literal[
    "unidentified",
    "unsupported_format",
    "truncated",
    "corrupt",
    "too_large",
    "tiny",
    "animated",
    "refused",
]

Values = NDArray[Any]
"""uint8 or uint16 (H, W, C)."""
SIGNATURES = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"%PDF": "PDF",
    b"\0\0\1\0": "ICO",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"\x1f\x8b": "gzip",
    b"PK\3\4": "zip",
    b"RIFF": "RIFF (no WebP)",
    b"version https://git-lfs": "Git LFS pointer (run `git lfs pull` first)",
}
BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs"), "HEIC"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
    b"crx ": "Canon CR3",
    b"qt  ": "QuickTime video",
}
SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)  # of these one scan is decoded when it holds all components
FRAMES = (*SEQUENTIAL_FRAMES, 0xC2, 0xCA)  # all that libjpeg-turbo decodes
MAX_SCANS = 100  # of a JPEG in several; encoders write about 10, and each costs its whole time
SHRUNK = 4  # times max_pixels: a JPEG of one scan that is shrunk while decoding never is in memory
TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf")  # of a PNG; Pillow reads nothing else of them
KINDS = {"L": "grey", "1": "grey", "LA": "grey", "CMYK": "cmyk", "P": "palette", "RGBA": "alpha"}
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners leave in files of 16


class BadImage(Exception):
    """An image that cannot be used: bad data, never a failure of the storage."""

    def __init__(self, kind: BadKind, message: str) -> None:
        """Keep the class of fault beside the message."""
        super().__init__(message)
        self.kind = kind


class Limits(NamedTuple):
    """What an image may be."""

    max_pixels: int = 50_000_000
    """A larger image is refused before it is decoded."""
    min_side: int = 1
    max_side: int = 1 << 30
    max_aspect: float = math.inf
    """Longer side over shorter one."""
    enough_side: int = 0
    """A JPEG is shrunk while decoding, to no less than this shorter side, px; 0 never shrinks."""
    advice: str = ""
    """Said of a larger image: how its user allows it."""


class Decoded(NamedTuple):
    """An image as it lies in its file."""

    pixels: ImageArray
    orientation: int
    """1 to 8; `turn_upright` undoes it."""
    form: Form
    conversions: tuple[str, ...]
    """What had to be changed, such as `grey` or `cmyk`."""


class Planes(NamedTuple):
    """An upright image in its own depth, for masks: nothing is rounded away."""

    values: Values
    """(H, W, 1) grey or (H, W, 3) RGB; uint16 of a PNG of 16 bits."""
    alpha: Values | None
    """(H, W), 0 is transparent; None where the file has none."""
    form: Form


DEFAULT = Limits()


def use_one_thread() -> None:
    """Decode and resize on one core in this process: tasks fill the cores, not threads."""
    cv2.setNumThreads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def open_rgb(data: bytes, limits: Limits = DEFAULT) -> ImageArray:
    """Encoded image -> uint8 (H, W, 3) RGB, upright.

    Raises:
        BadImage: the bytes are not an image that can be used.
    """
    found = decode(data, limits)
    return turn_upright(found.pixels, found.orientation)


def open_planes(data: bytes, limits: Limits = DEFAULT) -> Planes:
    """Encoded image -> its grey or RGB values and its alpha, upright and in their own depth.

    Raises:
        BadImage: the bytes are not an image that can be used.
    """
    form = identify(data)
    if form == "JPEG":
        return Planes(open_rgb(data, limits), None, form)
    found, _, turned = _by_pillow(data, limits, form)
    upright = turn_upright(found, turned)
    channels = upright.shape[2]
    if channels in (2, 4):
        return Planes(upright[..., :-1], upright[..., -1], form)
    return Planes(upright, None, form)


def decode(data: bytes, limits: Limits = DEFAULT) -> Decoded:
    """Encoded image -> uint8 (H, W, 3) RGB as it lies in the file, and which way up it is shown.

    Raises:
        BadImage: the bytes are not an image that can be used.
    """
    form = identify(data)
    if form == "JPEG":
        pixels, conversions = _decode_jpeg(data, limits)
        return Decoded(pixels, orientation.of_jpeg(data), form, conversions)
    values, mode, turned = _by_pillow(data, limits, form)
    kinds = [KINDS[mode]] if mode in KINDS else []
    if values.dtype == np.uint16:
        values, bits = to_8_bits(values)
        kinds.append("16-bit" if bits == 16 else f"16-bit holding {bits} bits")
    kinds += [form] if form != "PNG" else []
    return Decoded(_three(values), turned, form, tuple(kinds))


def to_8_bits(values: Values) -> tuple[NDArray[np.uint8], int]:
    """Keep the upper 8 of the bits in use, 8, 10, 12, 14 or 16 by the brightest value; the bits.

    A camera's 12 bits in a file of 16 would be black, if the upper 8 of 16 were kept.
    """
    colours = values[..., :-1] if values.ndim == 3 and values.shape[2] in (2, 4) else values
    brightest = int(colours.max(initial=0))
    bits = next(depth for depth in DEPTHS if brightest < 1 << depth)
    return (values >> (bits - 8)).clip(0, 255).astype(np.uint8), bits


def _three(values: Values) -> ImageArray:
    """(H, W, 1 to 4) -> (H, W, 3), without alpha."""
    if values.shape[2] < 3:
        return np.repeat(values[..., :1], 3, axis=2)
    return np.ascontiguousarray(values[..., :3])


def identify(data: bytes) -> Form:
    """The format by the first bytes; file names are not trusted.

    Raises:
        BadImage: none that is read; the message names it where it is known.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data.startswith(SIGNATURE):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    known: str | None
    if data[4:8] == b"ftyp":
        length = min(int.from_bytes(data[:4], "big"), 256)
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, length, 4))]
        names = [BRANDS[brand] for brand in brands if brand in BRANDS]
        if "AVIF" in names:
            return "AVIF"
        known = names[0] if names else "video"
    else:
        known = next((what for head, what in SIGNATURES.items() if data.startswith(head)), None)
    if known is None and b"<svg" in data[:1024].lower():
        known = "SVG"
    if known:
        raise BadImage("unsupported_format", f"{known}; images must be JPEG, PNG, WebP or AVIF")
    raise BadImage("unidentified", f"not an image; it starts with {data[:16]!r}")


def size_of(data: bytes, limits: Limits = DEFAULT) -> tuple[int, int]:
    """Height and width as shown; of a JPEG from the header alone.

    Raises:
        BadImage: the bytes are not an image that can be used.
    """
    if identify(data) == "JPEG":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except Exception:  # odd layouts raise what they like, and Pillow may know them
            return open_rgb(data, limits).shape[:2]
        turned = orientation.of_jpeg(data) >= 5
        return (width, height) if turned else (height, width)
    return open_rgb(data, limits).shape[:2]


def _decode_jpeg(data: bytes, limits: Limits) -> tuple[ImageArray, tuple[str, ...]]:
    sequential = _check_scans(data)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except Exception:  # ValueError, and KeyError for a chroma layout that it does not know
        return _odd_jpeg(data, limits)
    enough = limits.enough_side
    # An image at least twice too large is shrunk inside the decoder, at half the cost.
    scaled = 0 < 2 * enough <= min(height, width)
    if scaled and sequential:
        # The largest factor that leaves enough: what the decoder then holds is a part of it.
        _check_size(height, width, limits._replace(max_pixels=SHRUNK * limits.max_pixels))
    else:
        _check_size(height, width, limits)
    if colours in ("CMYK", "YCCK"):  # libjpeg-turbo ignores that Adobe stores them inverted
        return _odd_jpeg(data, limits)
    smallest = {"min_height": enough, "min_width": enough, "min_factor": 2} if scaled else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", **smallest)
    except Exception as error:
        message = str(error)
        if "premature end" in message.lower():
            raise BadImage("truncated", message) from None
        if isinstance(error, ValueError) and "extraneous" not in message:
            raise BadImage("corrupt", message) from None
        return _odd_jpeg(data, limits)  # stray bytes between segments do no harm to the pixels
    return pixels, ("grey",) if colours == "Gray" else ()


def _odd_jpeg(data: bytes, limits: Limits) -> tuple[ImageArray, tuple[str, ...]]:
    values, mode, _ = _by_pillow(data, limits, "JPEG")
    return _three(values), (KINDS.get(mode, "odd_jpeg"),)


def _check_scans(data: bytes) -> bool:
    """Whether one scan is decoded; a hostile JPEG paints over all its pixels again and again."""
    frame, components = 0, b""
    for marker, at in orientation.segments(data):
        if marker in FRAMES:
            frame, components = marker, data[at + 5 : at + 6]
        elif marker == START_OF_SCAN:
            if frame in SEQUENTIAL_FRAMES and data[at : at + 1] == components:
                return True
    scans = data.count(bytes((0xFF, START_OF_SCAN)))
    if scans > MAX_SCANS:
        raise BadImage("refused", f"a JPEG of {scans} scans; at most {MAX_SCANS} are decoded")
    return False


def _check_size(height: int, width: int, limits: Limits) -> None:
    shown = f"{width} x {height} px"
    if not height * width:
        raise BadImage("corrupt", f"{shown}; an image has pixels")
    if height * width > limits.max_pixels:
        more = f"; {limits.advice}" if limits.advice else ""
        raise BadImage("too_large", f"{shown}; at most {limits.max_pixels} pixels{more}")
    if min(height, width) < limits.min_side:
        raise BadImage("tiny", f"{shown}; each side must be at least {limits.min_side}")
    if max(height, width) > limits.max_side:
        raise BadImage("too_large", f"{shown}; each side may be at most {limits.max_side}")
    aspect = max(height, width) / min(height, width)
    if aspect > limits.max_aspect:
        raise BadImage("refused", f"{shown}: {aspect:.4g} to 1; at most {limits.max_aspect} to 1")


def _by_pillow(data: bytes, limits: Limits, form: Form) -> tuple[Values, str, int]:
    """Values (H, W, 1 to 4), Pillow's mode and the orientation (of a JPEG 1: its caller knows)."""
    turned = orientation.UPRIGHT
    if form == "PNG":
        if data[12:16] == b"IHDR" and len(data) >= 24:
            width, height = struct.unpack_from(">II", data, 16)
            _check_size(height, width, limits)
        turned = orientation.of_png(data)
        data = _without_texts(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about sizes and EXIF; both are ours
            with Image.open(BytesIO(data), formats=[form.upper()]) as image:
                _check_size(image.height, image.width, limits)
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and form != "JPEG":  # a camera's second frame is a small copy
                    raise BadImage("animated", f"{frames} frames; one image is wanted")
                image.load()
                if form in ("WebP", "AVIF"):
                    turned = _pillow_orientation(image)
                return _values(image, data), image.mode, turned
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("too_large", str(error)) from None
    except Exception as error:  # Pillow raises whatever its parsers meet in broken bytes
        text = f"{type(error).__name__}: {error}"
        cut = "truncat" in text.lower() or "not enough" in text.lower()
        raise BadImage("truncated" if cut else "corrupt", text) from None


def _pillow_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(orientation.TAG, orientation.UPRIGHT)
    except Exception:  # as above: a broken block says nothing about orientation
        return orientation.UPRIGHT
    return value if value in range(1, 9) else orientation.UPRIGHT


def _values(image: Image.Image, data: bytes) -> Values:
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if is_deep_png(data):  # Pillow keeps the upper 8 bits of colours
        deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if deep is not None and deep.dtype == np.uint16 and deep.ndim == 3:
            order = [2, 1, 0, 3][: deep.shape[2]]
            colours: Values = deep[..., order]
            return colours
    if image.mode in ("L", "1") and "transparency" not in image.info:
        return np.array(image.convert("L"))[..., None]
    alpha = image.mode.endswith(("A", "a")) or "transparency" in image.info
    return np.array(image.convert("RGBA" if alpha else "RGB"))


def _without_texts(data: bytes) -> bytes:
    """A PNG without texts and profiles, of which Pillow refuses large ones and no pixel depends."""
    parts, begun = [], 0
    for kind, begin, end in orientation.chunks(data):
        if kind in TEXTS:
            parts.append(data[begun : begin - 8])
            begun = end + 4
    return b"".join([*parts, data[begun:]]) if parts else data


def is_deep_png(data: bytes) -> bool:
    """Whether the bytes are a PNG of 16 bits per value."""
    return data.startswith(SIGNATURE) and data[24:25] == b"\x10"
