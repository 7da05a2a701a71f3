"""One opener of unknown images: the same pixels in every stage, upright, or the reason why not."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.data import untrusted
from pipelines.data.untrusted import BadImage, Limits, decode, open_planes, open_rgb, size_of
from pipelines.evaluation.data import images as evaluation
from pipelines.prepare import normalise

# cjpeg -sample 1x4,1x1,1x1 of 40 x 32 px: a chroma layout that simplejpeg does not know.
JPEG_441 = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAx"
    "NDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjIyMjIyMjL/wAARCAAgACgDARQAAhEBAxEB/8QAGQABAAMBAQAAAAAAAAAAAAAABgMFBwIE/8QAIxAAAgIDAAEDBQAAAAAAAAAA"
    "AQIAAwQFESEGEzIUIjFBYf/EABkBAAIDAQAAAAAAAAAAAAAAAAMFAAEEBv/EACURAAAFAQcFAAAAAAAAAAAAAAABAgMEEQUSISIj"
    "gaEGEzEyQ//aAAwDAQACEQMRAD8A8uPqbkcEoY6bN1h+LL2Y5iW7VbAXL8ms52ix6qiVrHgRw5IlmWZ2uwtEnH2EetU0VcbxJb7E"
    "dT7P4/koNNshXUBe3nn7hP1BlNhXFazzzOflKbUeoxf3oG7E5FKGHO3uUqR2VW1axSeyTb3VZKn2z2HNFlPlsA57JGbqekxd3AJN"
    "iFaGKVUHWYhsY8k1N1Zf7yJWZOPkKSVBjU4Fbp0qI5bKcjwkJ19MnBzG7wAVmBYx+JixLMPnkiDH+tB8djttbV34iaikzy+fICdp"
    "oZy9/gf/2Q=="
)
PREPARE = normalise.Limits(stored_side=256, jpeg_quality=95, max_pixels=10_000_000, min_side=16)


def image(number: int = 0, height: int = 40, width: int = 48, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pillow_upright(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(data: bytes, before: bytes, kind: bytes, body: bytes) -> bytes:
    at = data.index(before) - 4
    return data[:at] + chunk(kind, body) + data[at:]


def in_jpeg(*parts: bytes) -> bytes:
    data = encoded(image(), "JPEG", quality=95)
    return data[:2] + b"".join(parts) + data[2:]


def exif(order: str, kind: int, value: bytes, tag: int = 0x0112) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHI", 8, 1, tag, kind, 1) + value + bytes(4)


def app1(block: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + block)


def xmp(orientation: int, spelling: str = 'tiff:Orientation="{}"') -> bytes:
    return (
        b"<x:xmpmeta><rdf:Description " + spelling.format(orientation).encode() + b"/></x:xmpmeta>"
    )


def xmp_segment(orientation: int) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation))


def raw_profile(block: bytes) -> bytes:
    return b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"


SHORT, LONG = struct.pack("<HH", 6, 0), struct.pack(">I", 6)
SIX = exif("<", 3, SHORT)
PNG = encoded(image())
LARGE_PNG = encoded(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8))
)
TURNED: dict[str, bytes] = {
    "EXIF in a JPEG": in_jpeg(app1(SIX)),
    "XMP alone in a JPEG": in_jpeg(xmp_segment(6)),
    "EXIF beats XMP, whichever comes first": in_jpeg(xmp_segment(1), app1(SIX)),
    "EXIF without an orientation, then XMP": in_jpeg(
        app1(exif("<", 3, SHORT, tag=0x010F)), xmp_segment(6)
    ),
    "LONG in a big-endian block": in_jpeg(app1(exif(">", 4, LONG))),
    "fill bytes before the segment": in_jpeg(b"\xff\xff" + app1(SIX)),
    "eXIf before the image data of a PNG": with_chunk(PNG, b"IDAT", b"eXIf", SIX),
    "eXIf behind it": with_chunk(PNG, b"IEND", b"eXIf", SIX),
    "eXIf far behind it": with_chunk(LARGE_PNG, b"IEND", b"eXIf", SIX),
    "ImageMagick's profile": with_chunk(
        PNG,
        b"IDAT",
        b"zTXt",
        b"Raw profile type exif\0\0" + zlib.compress(raw_profile(b"Exif\0\0" + SIX)),
    ),
    "XMP in a PNG": with_chunk(PNG, b"IDAT", b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
    "EXIF in a WebP": encoded(image(), "WEBP", exif=b"Exif\0\0" + SIX),
    "EXIF in an AVIF": encoded(image(), "AVIF", exif=b"Exif\0\0" + SIX),
}


@pytest.mark.parametrize("name", TURNED)
def test_an_image_is_upright_as_pillow_shows_it_wherever_its_orientation_stands(name: str) -> None:
    data = TURNED[name]
    assert open_rgb(data).shape == pillow_upright(data).shape
    assert np.abs(open_rgb(data).astype(int) - pillow_upright(data)).max() <= 1
    height, width = size_of(data)
    assert (height, width) == open_rgb(data).shape[:2] and height > width
    stored = normalise.normalise(data, "a", PREPARE)
    assert (stored.height, stored.width) == (height, width)
    assert "rotated" in stored.conversions


@pytest.mark.parametrize("orientation", range(10))
def test_xmp_speaks_as_exif_does_and_nonsense_is_upright(orientation: int) -> None:
    by_exif = in_jpeg(app1(exif("<", 3, struct.pack("<HH", orientation, 0))))
    assert decode(by_exif).orientation == decode(in_jpeg(xmp_segment(orientation))).orientation
    assert decode(by_exif).orientation == (orientation if 1 <= orientation <= 8 else 1)
    assert np.array_equal(open_rgb(by_exif), pillow_upright(by_exif))


def test_broken_metadata_says_nothing_and_costs_no_image() -> None:
    for data in (
        in_jpeg(app1(b"II*\0\xff\xff\xff\xff")),
        in_jpeg(app1(SIX[:12])),
        in_jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0tiff:Orientation=")),
        with_chunk(PNG, b"IDAT", b"zTXt", b"Raw profile type exif\0\0not zlib"),
        with_chunk(PNG, b"IDAT", b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyzw"),
        with_chunk(PNG, b"IDAT", b"iTXt", b"XML:com.adobe.xmp"),
        encoded(image(), "WEBP", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    ):
        assert decode(data).orientation == 1
        assert decode(data).pixels.shape == (40, 48, 3)


MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_every_mode_has_the_colours_that_pillow_gives(mode: str, form: str) -> None:
    if (form == "JPEG" and mode in ("P", "RGBA", "LA")) or (form == "PNG" and mode == "CMYK"):
        pytest.skip("there is no such file")
    data = encoded(image(mode=mode), form)
    assert np.array_equal(open_rgb(data), pillow_upright(data))
    assert np.array_equal(open_rgb(data), evaluation.decode(data, "a"))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_changes_no_colour_and_is_seen_as_alpha(mode: str) -> None:
    key = (1, 2, 3) if mode == "RGB" else 3
    data = encoded(image(mode=mode), transparency=key)
    assert np.array_equal(open_rgb(data), pillow_upright(data))
    assert open_planes(data).alpha is not None


def test_planes_keep_alpha_and_every_bit() -> None:
    alpha = np.zeros((40, 48), np.uint8)
    alpha[5:9, 7:11] = 200
    rgba = image().copy()
    rgba.putalpha(Image.fromarray(alpha))
    for form in ("PNG", "WEBP"):
        found = open_planes(encoded(rgba, form, lossless=True))
        assert found.alpha is not None and np.array_equal(found.alpha, alpha)
        assert found.values.shape == (40, 48, 3)
    grey = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48)
    deep = open_planes(encoded(Image.fromarray(grey)))
    assert deep.values.dtype == np.uint16 and np.array_equal(deep.values[..., 0], grey)
    turned = with_chunk(encoded(Image.fromarray(grey)), b"IEND", b"eXIf", SIX)
    assert np.array_equal(open_planes(turned).values[..., 0], np.rot90(grey, -1))
    assert open_planes(encoded(image(), "JPEG")).alpha is None


def deep_png(values: np.ndarray) -> bytes:
    """uint16 (H, W, C) as a PNG of 16 bits; written out, since Pillow writes grey ones only."""
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_of_16_bits_those_in_use_are_kept(channels: int, bits: int) -> None:
    values = (
        np.random.default_rng(bits).integers(0, 1 << bits, (40, 48, channels)).astype(np.uint16)
    )
    values[0, 0] = (1 << bits) - 1
    if channels in (2, 4):
        values[..., -1] = 65535
    data = deep_png(values)
    colours = values[..., : 1 if channels < 3 else 3]
    assert np.array_equal(open_rgb(data), np.broadcast_to(colours >> (bits - 8), (40, 48, 3)))
    kinds = decode(data).conversions
    assert ("16-bit" if bits == 16 else f"16-bit holding {bits} bits") in kinds
    assert (open_planes(data).values == colours).all()


def test_a_grey_of_16_bits_is_the_same_in_prepare_and_in_evaluation() -> None:
    data = encoded(Image.fromarray(np.full((40, 40), 30_000, np.uint16)))
    assert open_rgb(data).max() == 30_000 >> 8 == 117
    assert evaluation.decode(data, "a").max() == 117
    assert normalise.normalise(data, "a.png", PREPARE).rgb_sums[0] == 117 * 1600


def test_a_result_on_a_png_of_16_bits_has_a_key_of_its_own_and_no_other_key_moved() -> None:
    deep = encoded(Image.fromarray(np.full((40, 40), 30_000, np.uint16)))
    digests = [evaluation._digest(data) for data in (PNG, deep)]
    assert digests[0] == evaluation.storage.sha256_of_bytes(PNG)
    assert digests[1] != evaluation.storage.sha256_of_bytes(deep)


def test_a_chroma_layout_that_one_decoder_does_not_know_is_read_by_another() -> None:
    assert np.array_equal(open_rgb(JPEG_441), pillow_upright(JPEG_441))
    assert size_of(JPEG_441) == (32, 40)
    assert decode(JPEG_441).conversions == ("odd_jpeg",)


@pytest.mark.parametrize("error", [KeyError(6), MemoryError("too much"), RuntimeError("libjpeg")])
def test_an_error_of_any_class_in_a_decoder_is_the_fault_of_that_image(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    data = encoded(image(), "JPEG")
    monkeypatch.setattr(untrusted.simplejpeg, "decode_jpeg", fails)
    assert decode(data).conversions == ("odd_jpeg",)
    monkeypatch.setattr(untrusted.Image, "open", fails)
    for broken in (data, PNG):
        with pytest.raises(BadImage, match=type(error).__name__):
            open_rgb(broken)


def test_large_texts_in_a_png_cost_no_image() -> None:
    for kind, body in (
        (b"zTXt", b"xmp\0\0" + zlib.compress(bytes(3 << 20))),
        (b"iCCP", b"icc\0\0" + zlib.compress(bytes(3 << 20))),
        (b"tEXt", b"workflow\0" + bytes(2 << 20)),
    ):
        assert np.array_equal(open_rgb(with_chunk(PNG, b"IDAT", kind, body)), open_rgb(PNG))


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic"


NAMED = {
    "JPEG 2000": encoded(image(), "JPEG2000"),
    "HEIC": box(b"heic") + bytes(300),
    "HEIF": box(b"mif1") + bytes(300),
    "JPEG XL": b"\xff\x0a" + bytes(100),
    "JPEG XL ": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "SVG": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "gzip": b"\x1f\x8b\x08\0",
    "BMP": encoded(image(), "BMP"),
    "GIF": encoded(image(), "GIF"),
    "TIFF": encoded(image(), "TIFF"),
    "RIFF": b"RIFF\x24\0\0\0WAVEfmt " + bytes(100),
    "video": box(b"isom")[:16] + bytes(100),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_format_that_is_not_read_is_named(name: str) -> None:
    with pytest.raises(BadImage, match=name.strip()) as caught:
        open_rgb(NAMED[name])
    assert caught.value.kind == "unsupported_format"
    assert "JPEG, PNG, WebP or AVIF" in str(caught.value)


def test_animations_are_told_and_broken_ones_of_every_format_are_faults() -> None:
    more = {"save_all": True, "append_images": [image(1), image(2)]}
    for form in ("PNG", "WEBP", "AVIF"):
        with pytest.raises(BadImage, match="3 frames") as caught:
            open_rgb(encoded(image(), form, **more))
        assert caught.value.kind == "animated"
        whole = encoded(image(), form)
        for share in (0.1, 0.5, 0.9):
            with pytest.raises(BadImage) as caught:
                open_rgb(whole[: int(len(whole) * share)])
            assert caught.value.kind in ("truncated", "corrupt")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_limits_hold_for_every_format_and_say_how_they_are_raised(form: str) -> None:
    data = encoded(image(), form)
    for limits, kind, words in (
        (
            Limits(max_pixels=1919, advice="say so"),
            "too_large",
            "48 x 40 px; at most 1919 pixels; say",
        ),
        (Limits(min_side=41), "tiny", "at least 41"),
        (Limits(max_side=47), "too_large", "at most 47"),
        (Limits(max_aspect=1.1), "refused", "1.2 to 1"),
    ):
        with pytest.raises(BadImage, match=words) as caught:
            open_rgb(data, limits)
        assert caught.value.kind == kind
    assert open_rgb(data, Limits(max_pixels=1920, min_side=40, max_side=48)).shape == (40, 48, 3)


def test_a_large_photograph_is_shrunk_while_it_is_decoded_and_a_progressive_one_is_not() -> None:
    limits = Limits(max_pixels=100_000, enough_side=64)
    large = image(height=480, width=640)
    assert decode(encoded(large, "JPEG"), limits).pixels.shape == (120, 160, 3)
    for data in (
        encoded(large, "JPEG", progressive=True),  # it would be held whole
        encoded(large),
        encoded(large.resize((800, 600)), "JPEG"),  # above four times the limit
    ):
        with pytest.raises(BadImage, match=r"at most \d+ pixels"):
            open_rgb(data, limits)
