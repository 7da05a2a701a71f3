"""One image: what is stored, what is converted, what is quarantined and as what."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from pipelines.prepare.normalise import Fault, Limits, Stored, normalise, shrink, turn_upright


def draw_image(number: int, height: int, width: int) -> np.ndarray:
    """A smooth, coloured image: uint8 (H, W, 3) RGB."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


LIMITS = Limits(stored_side=64, jpeg_quality=90, max_pixels=1_000_000, min_side=16)


def image(mode: str = "RGB", size: tuple[int, int] = (100, 80)) -> Image.Image:
    return Image.fromarray(draw_image(1, size[1], size[0])).convert(mode)


def encoded(picture: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def stored(data: bytes, name: str = "a.jpg", limits: Limits = LIMITS) -> Stored:
    return normalise(data, name, limits)


def fault_of(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(Fault) as caught:
        normalise(data, "a.jpg", limits)
    assert str(caught.value)
    return caught.value.kind


JPEG = encoded(image(), quality=92)
PROGRESSIVE = encoded(image(), progressive=True)
PNG = encoded(image(), "PNG")


def with_scans(data: bytes, count: int) -> bytes:
    """The last scan of a JPEG, again and again."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def with_exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    block = mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + block
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return JPEG[:2] + segment + JPEG[2:]


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        tail = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + tail

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def test_a_large_image_is_shrunk_to_the_stored_side_and_a_small_one_never_enlarged() -> None:
    large, small = stored(JPEG), stored(encoded(image(size=(40, 30))))
    assert (large.height, large.width) == (64, 80)
    assert (small.height, small.width) == (30, 40)


def test_the_sums_are_those_of_the_pixels_that_were_stored() -> None:
    picture = stored(PNG, "a.png", LIMITS._replace(stored_side=100))
    assert picture.rgb_sums == tuple(np.asarray(image()).reshape(-1, 3).sum(axis=0))


def test_what_is_stored_is_always_an_rgb_jpeg_like_its_source() -> None:
    picture = stored(JPEG, limits=LIMITS._replace(stored_side=100))
    assert simplejpeg.decode_jpeg_header(picture.jpeg)[:3] == (80, 100, "YCbCr")
    difference = simplejpeg.decode_jpeg(picture.jpeg).astype(int) - np.asarray(image())
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("side", [50, 99, 180])
def test_shrinking_keeps_the_mean_colour(side: int) -> None:
    pixels = draw_image(3, 200, 260)
    small = shrink(pixels, side)
    assert min(small.shape[:2]) == side
    assert np.abs(small.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_undone_as_pillow_does(orientation: int, order: str) -> None:
    data = with_exif(orientation, order)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    turned = turn_upright(np.asarray(Image.open(io.BytesIO(data))), orientation)
    assert np.array_equal(turned, expected)
    picture = stored(data, limits=LIMITS._replace(stored_side=100))
    assert (picture.height, picture.width) == expected.shape[:2]
    assert ("rotated" in picture.conversions) == (orientation != 1)


CONVERTED: dict[str, tuple[bytes, str, tuple[str, ...]]] = {
    "grey JPEG": (encoded(image("L")), "a.jpg", ("grey",)),
    "CMYK JPEG": (encoded(image("CMYK")), "a.jpg", ("cmyk",)),
    "grey PNG": (encoded(image("L"), "PNG"), "a.png", ("grey",)),
    "bilevel PNG": (encoded(image("1"), "PNG"), "a.png", ("grey",)),
    "grey PNG with alpha": (encoded(image("LA"), "PNG"), "a.png", ("grey",)),
    "RGBA PNG": (encoded(image("RGBA"), "PNG"), "a.png", ("alpha",)),
    "palette PNG": (encoded(image("P"), "PNG"), "a.png", ("palette",)),
    "16-bit PNG": (
        encoded(Image.fromarray(np.full((80, 90), 40000, np.uint16)), "PNG"),
        "a.png",
        ("16-bit",),
    ),
    "PNG named .JPEG": (PNG, "n02105855_2933.JPEG", ("misnamed",)),
    "JPEG named .png": (JPEG, "a.png", ("misnamed",)),
    "WebP": (encoded(image(), "WEBP"), "a.webp", ("WebP",)),
    "AVIF": (encoded(image(), "AVIF"), "a.avif", ("AVIF",)),
    "WebP named .jpg": (encoded(image(), "WEBP"), "a.jpg", ("WebP", "misnamed")),
    "progressive JPEG": (PROGRESSIVE, "a.jpg", ()),
    "JPEG with bytes behind it": (JPEG + b"<?php system($_GET[0]) ?>", "a.jpg", ()),
    "JPEG without subsampling": (encoded(image(), subsampling=0), "a.jpg", ()),
    "JPEG with a broken EXIF block": (
        JPEG[:2] + b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff" + JPEG[2:],
        "a.jpg",
        (),
    ),
    "JPEG with stray bytes before its scan": (
        JPEG[: JPEG.index(b"\xff\xda")] + b"stray" + JPEG[JPEG.index(b"\xff\xda") :],
        "a.jpg",
        ("odd_jpeg",),
    ),
    "JPEG with restart markers": (encoded(image(), restart_marker_blocks=2), "a.jpg", ()),
    "wide image": (encoded(image(size=(640, 20))), "a.jpg", ()),
    "tall image": (encoded(image(size=(20, 640))), "a.jpg", ()),
    "smallest image": (encoded(image(size=(16, 16))), "a.jpg", ()),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_odd_but_whole_images_are_converted_and_counted(name: str) -> None:
    data, file, kinds = CONVERTED[name]
    picture = stored(data, file)
    assert picture.conversions == kinds
    assert simplejpeg.decode_jpeg(picture.jpeg).shape == (picture.height, picture.width, 3)


def test_sixteen_bits_become_eight_and_not_white() -> None:
    data = encoded(Image.fromarray(np.full((40, 40), 40000, np.uint16)), "PNG")
    assert stored(data).rgb_sums[0] / 1600 == 40000 >> 8


def test_a_cmyk_image_has_the_colours_that_pillow_sees() -> None:
    data = encoded(image("CMYK"), quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3)
    picture = stored(data, limits=LIMITS._replace(stored_side=100))
    assert picture.rgb_sums == tuple(expected.sum(axis=0))


def test_bytes_behind_an_image_are_not_stored() -> None:
    assert b"php" not in stored(JPEG + b"<?php").jpeg


ANIMATED_PNG = encoded(image(), "PNG", save_all=True, append_images=[image("L").convert("RGB")])
BAD: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "nothing": (lambda: b"", {"unidentified"}),
    "text": (lambda: b"hello " * 100, {"unidentified"}),
    "an HTML page": (lambda: b"<!DOCTYPE html><html>404</html>", {"unidentified"}),
    "zeros": (lambda: bytes(1000), {"unidentified"}),
    "noise": (lambda: random.Random(0).randbytes(5000), {"unidentified"}),
    "a GIF": (lambda: encoded(image(), "GIF"), {"unsupported_format"}),
    "a BMP": (lambda: encoded(image(), "BMP"), {"unsupported_format"}),
    "a TIFF": (lambda: encoded(image(), "TIFF"), {"unsupported_format"}),
    "a JPEG 2000": (lambda: encoded(image(), "JPEG2000"), {"unsupported_format"}),
    "a PDF": (lambda: encoded(image(), "PDF"), {"unsupported_format"}),
    "an ICO": (lambda: encoded(image(), "ICO"), {"unsupported_format"}),
    "a moving PNG": (lambda: ANIMATED_PNG, {"animated"}),
    "one pixel": (lambda: encoded(image(size=(1, 1))), {"tiny"}),
    "one row": (lambda: encoded(image(size=(900, 1))), {"tiny"}),
    "a side of 15": (lambda: encoded(image(size=(15, 400)), "PNG"), {"tiny"}),
    "a JPEG above four times the pixel limit": (
        lambda: encoded(image(size=(2001, 2000))),
        {"too_large"},
    ),
    "a progressive JPEG above the pixel limit": (
        lambda: encoded(image(size=(1001, 1000)), progressive=True),
        {"too_large"},
    ),
    "a PNG above the pixel limit": (
        lambda: encoded(image(size=(1001, 1000)), "PNG"),
        {"too_large"},
    ),
    "a JPEG wider than 32 to 1": (lambda: encoded(image(size=(641, 20))), {"refused"}),
    "a PNG taller than 32 to 1": (lambda: encoded(image(size=(20, 2000)), "PNG"), {"refused"}),
    "a JPEG bomb": (lambda: jpeg_claiming(65000, 65000), {"too_large"}),
    "a JPEG of 110 scans": (lambda: with_scans(PROGRESSIVE, 100), {"refused"}),
    "a JPEG of 110 scans with stray bytes before them": (
        lambda: PROGRESSIVE[:20] + b"stray" + with_scans(PROGRESSIVE, 100)[20:],
        {"refused"},
    ),
    "a PNG bomb of 100 megapixels": (lambda: png_bomb(10_000, 10_000), {"too_large"}),
    "a PNG bomb of 400 megapixels": (lambda: png_bomb(20_000, 20_000), {"too_large"}),
    "a PNG bomb of 4 terapixels": (lambda: png_bomb(2_000_000, 2_000_000), {"too_large"}),
    "a PNG without pixels": (lambda: png_bomb(100, 100), {"truncated", "corrupt"}),
    "a JPEG that claims more rows": (lambda: jpeg_claiming(100, 800), {"truncated", "corrupt"}),
    "only a JPEG signature": (lambda: b"\xff\xd8\xff", {"truncated", "corrupt"}),
    "only a PNG signature": (lambda: b"\x89PNG\r\n\x1a\n", {"truncated", "corrupt"}),
    "a JPEG of one marker": (lambda: JPEG[:20], {"truncated", "corrupt"}),
    "a PNG with a wrong checksum": (
        lambda: PNG[:40] + bytes([PNG[40] ^ 1]) + PNG[41:],
        {"corrupt", "truncated"},
    ),
}
CUTS = {
    f"{name} cut at {share:.0%}": (data[: int(len(data) * share)], {"truncated", "corrupt"})
    for name, data in (("JPEG", JPEG), ("progressive JPEG", PROGRESSIVE), ("PNG", PNG))
    for share in (0.05, 0.3, 0.5, 0.8, 0.95)
}
ENDS = {
    f"{name} without its last {count} bytes": (data[:-count], {"truncated"})
    for name, data in (("JPEG", JPEG), ("progressive JPEG", PROGRESSIVE))
    for count in (1, 2, 3, 50)
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_set_aside_with_its_class(name: str) -> None:
    make, kinds = BAD[name]
    assert fault_of(make()) in kinds


@pytest.mark.parametrize(
    ("size", "kind", "words"),
    [
        ((65_501, 20), "too_large", "65501 x 20 px; each side may be at most 65500"),
        ((16, 60_000), "refused", "16 x 60000 px: 3750 to 1; at most 32 to 1"),
    ],
)
def test_a_side_that_no_jpeg_has_and_an_extreme_aspect_are_refused_by_their_limits(
    size: tuple[int, int], kind: str, words: str
) -> None:
    for data in (encoded(Image.new("L", size), "PNG"), jpeg_claiming(*size)):
        with pytest.raises(Fault, match=words) as caught:
            stored(data, limits=LIMITS._replace(max_pixels=10_000_000))
        assert caught.value.kind == kind


@pytest.mark.parametrize("name", {**CUTS, **ENDS})
def test_an_image_that_was_cut_is_found_however_little_is_missing(name: str) -> None:
    data, kinds = {**CUTS, **ENDS}[name]
    assert fault_of(data) in kinds


def test_the_list_of_odd_inputs_is_long_enough_to_mean_something() -> None:
    assert len(CONVERTED) + len(BAD) + len(CUTS) + len(ENDS) + 16 >= 60


@pytest.mark.parametrize("seed", range(4))
def test_mutated_images_end_as_an_image_or_as_a_fault_and_never_otherwise(seed: int) -> None:
    rng = random.Random(seed)
    outcomes = {"stored": 0, "fault": 0}
    for number in range(250):
        data = bytearray([JPEG, PROGRESSIVE, PNG, with_exif(6)][number % 4])
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            picture = stored(bytes(data))
        except Fault:
            outcomes["fault"] += 1
        else:
            outcomes["stored"] += 1
            assert min(picture.height, picture.width) <= LIMITS.stored_side
    assert min(outcomes.values()) > 10
