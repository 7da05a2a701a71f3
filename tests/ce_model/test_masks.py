"""Masks: hidden shares, determinism, packing, symmetries, shrinking."""

import hashlib

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline

from ce_model import mask_shapes, masks
from ce_model.mask_tensors import apply_symmetry, shrink, unpack
from ce_model.masks import (
    MAX_HIDDEN,
    STRATEGIES,
    Strategy,
    central,
    make_mask,
    mask_for,
    mask_seed,
    masks_for,
    pack,
    random_region,
)

RANDOM = [strategy for strategy in STRATEGIES if strategy != "central"]


def test_central_hides_rows_and_columns_32_to_95_of_128() -> None:
    mask = central(128)
    assert mask[32:96, 32:96].all()
    assert mask.sum() == 64**2


@pytest.mark.parametrize("size", [128, 227])
def test_noise_hides_exactly_the_share_for_1000_seeds(size: int) -> None:
    hidden = {int(mask_for(seed, "random_region", size, "a", 0).sum()) for seed in range(1000)}
    assert hidden == {round(size**2 / 4)}


@pytest.mark.parametrize("spread", [1, 3, 1 << 18, 1 << 24])  # few values and levels, and many
@pytest.mark.parametrize("count", [1, 500, 9999, 10000])
def test_the_smallest_values_are_chosen_and_of_equal_ones_the_first(
    spread: int, count: int
) -> None:
    generator = np.random.default_rng(spread + count)
    for ordered in (False, True):
        values = generator.integers(-(spread // 2), spread - spread // 2, 10000, dtype=np.int32)
        values = (np.sort(values) if ordered else values).astype(np.float32) / masks.NOISE_UNIT
        expected = np.zeros(len(values), np.bool_)
        expected[np.argsort(values, kind="stable")[:count]] = True
        assert np.array_equal(masks._smallest(values, count), expected)


def test_a_sample_that_misleads_changes_nothing() -> None:
    values = np.arange(6100, dtype=np.float32) / 128
    for misleading in (-64, 64):
        values[:: masks.SAMPLE_STRIDE] = misleading
        expected = np.zeros(len(values), np.bool_)
        expected[np.argsort(values, kind="stable")[:1525]] = True
        assert np.array_equal(masks._smallest(values, 1525), expected)


@pytest.mark.parametrize("share", [0.20, 0.23, 0.30])
def test_noise_hides_another_share_exactly(share: float) -> None:
    assert mask_for(0, "random_region", 227, "a", 0, share=share).sum() == round(share * 227**2)


def test_odd_variants_of_noise_hide_its_other_end() -> None:
    for seed in range(100):
        dark, bright = (mask_for(seed, "random_region", 128, "a", v) for v in (2, 3))
        assert bright.sum() == dark.sum() == round(128**2 / 4)
        assert not (dark & bright).any()


@pytest.mark.parametrize("variants", [1, 2, 5])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_drawn_together_are_those_drawn_alone(strategy: Strategy, variants: int) -> None:
    together = list(masks_for(3, strategy, 128, "a", variants))
    alone = [mask_for(3, strategy, 128, "a", variant) for variant in range(variants)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("strategy", ["random_block", "random_region_shapes"])
def test_blocks_and_shapes_hide_something_and_at_most_a_quarter_for_1000_seeds(
    strategy: Strategy, size: int
) -> None:
    shares = [mask_for(seed, strategy, size, "a", 0).mean() for seed in range(1000)]
    assert 0 < min(shares)
    assert max(shares) <= MAX_HIDDEN
    assert np.mean(shares) > 0.2  # and on average most of what is allowed


@pytest.mark.parametrize("strategy", RANDOM)
def test_distinct_seeds_keys_and_variants_give_distinct_masks(strategy: Strategy) -> None:
    drawn = {
        mask_for(seed, strategy, 128, key, variant).tobytes()
        for seed in range(100)
        for key in ("a", "b")
        for variant in range(5)
    }
    assert len(drawn) == 1000


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mask_does_not_depend_on_what_was_drawn_before(strategy: Strategy) -> None:
    keys = [f"n0{index}/{index}.jpg" for index in range(20)]
    forward = [mask_for(3, strategy, 128, key, 1) for key in keys]
    backward = [mask_for(3, strategy, 128, key, 1) for key in reversed(keys)]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_mask_seeds_do_not_run_together() -> None:
    seeds = {
        mask_seed(seed, strategy, size, key, variant)
        for seed in (1, 11)
        for strategy in STRATEGIES
        for size in (128, 227)
        for key in ("", "1", "11", "1\0")
        for variant in (1, 11)
    }
    assert len(seeds) == 2 * len(STRATEGIES) * 2 * 4 * 2


@pytest.mark.parametrize(
    ("strategy", "digest"),
    [
        ("central", "60780a906d6562df"),
        ("random_block", "f8a5beb0a82526e9"),
        ("random_region", "8ac86100e206fc93"),
        ("random_region_shapes", "2881fcb38e3d494e"),
        ("free_form", "aa947de28eaf6bfc"),
        ("grid_60", "ed852c1266c8b1b1"),
    ],
)
def test_masks_are_the_same_bits_on_every_machine(strategy: Strategy, digest: str) -> None:
    # Stored datasets and running jobs rely on these bits: a new digest needs a new MASK_VERSION.
    drawn = b"".join(
        pack(mask_for(0, strategy, size, f"{index}.jpg", index % 3))
        for size in (128, 227)
        for index in range(50)
    )
    assert masks.MASK_VERSION == 2
    assert hashlib.sha256(drawn).hexdigest()[:16] == digest


@pytest.mark.parametrize("size", [32, 128, 227])
def test_noise_weights_are_cubic_interpolation_to_fixed_point(size: int) -> None:
    weights = masks._noise_weights(size)
    position = (np.arange(len(weights)) + 0.5) * 0.06 - 0.5  # centre of a pixel, in cells
    distance = np.abs(position[:, None] - (np.arange(weights.shape[1]) - 2)[None, :])
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    kernel = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    np.testing.assert_allclose(weights / masks.WEIGHT_ONE, kernel, atol=0.51 / masks.WEIGHT_ONE)


def test_noise_sums_are_whole_numbers_that_float32_holds() -> None:
    weights = masks._noise_weights(227)
    noise = np.random.default_rng(0).integers(-512, 512, (weights.shape[1],) * 2)
    exact = weights.astype(np.int64) @ noise @ weights.T.astype(np.int64)
    rounded = weights @ noise.astype(np.float32) @ weights.T
    np.testing.assert_array_equal(rounded.astype(np.int64), exact)


def test_a_polygon_covers_the_pixel_centres_inside_its_outline() -> None:
    generator = np.random.default_rng(0)
    for corners in np.concatenate([mask_shapes.draw_shapes(64, generator) for _ in range(4)]):
        outline = corners + 16 * 20
        drawn = mask_shapes.draw_polygon(40, outline)
        centers = 16 * np.stack(np.mgrid[:40, :40], -1).reshape(-1, 2) + 8
        inside = Outline(np.concatenate([outline, outline[:1]])).contains_points(centers)
        wrong = centers[drawn.ravel() != inside]
        assert drawn.any()
        assert (_distance(wrong, outline) <= 1).all()  # 1/16 px: crossings are rounded to that


def _distance(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """From each point to the nearest edge of a closed polygon."""
    start, along = corners, np.roll(corners, -1, axis=0) - corners
    offset = points[:, None] - start
    length = np.maximum((along**2).sum(-1), 1)
    share = np.clip((offset * along).sum(-1) / length, 0, 1)
    return np.linalg.norm(offset - share[..., None] * along, axis=-1).min(1, initial=np.inf)


@pytest.mark.parametrize("share", [0.19, 0.31])
def test_a_share_outside_the_code_of_the_authors_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"mask share is 0\.\d+; it must be 0\.20 to 0\.30"):
        random_region(128, np.random.default_rng(0), share=share)


def test_a_share_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must stay 0\.25 with strategy random_block"):
        make_mask("random_block", 128, np.random.default_rng(0), share=0.3)


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="it must be one of central, random_block"):
        make_mask("center", 128, np.random.default_rng(0))  # type: ignore[arg-type]


def test_a_tiny_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask size is 31 px"):
        mask_for(0, "random_block", 31, "a", 0)


@pytest.mark.parametrize("size", [33, 128, 227])
def test_unpack_is_the_inverse_of_pack(size: int) -> None:
    drawn = np.random.default_rng(0).random((3, size, size)) < 0.3
    rows = np.stack([np.frombuffer(pack(mask), np.uint8) for mask in drawn])
    unpacked = unpack(torch.from_numpy(rows), size)
    assert unpacked.dtype == torch.bool
    np.testing.assert_array_equal(unpacked.numpy(), drawn)


def test_unpack_refuses_masks_of_another_size() -> None:
    with pytest.raises(ValueError, match="masks of 128 x 128 px take 2048 bytes"):
        unpack(torch.zeros(2, 6442, dtype=torch.uint8), 128)


def test_the_symmetries_are_the_8_of_the_square() -> None:
    mask = np.random.default_rng(0).random((9, 9)) < 0.5
    turned = apply_symmetry(torch.from_numpy(mask).expand(8, 9, 9), torch.arange(8))
    expected = {np.rot90(m, k).tobytes() for m in (mask, mask[:, ::-1]) for k in range(4)}
    assert len(expected) == 8
    assert {row.numpy().tobytes() for row in turned} == expected


def test_each_mask_of_a_batch_gets_its_own_symmetry() -> None:
    batch = torch.rand(16, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    index = torch.arange(16, dtype=torch.uint8) % 8
    one_by_one = [apply_symmetry(batch[i : i + 1], index[i : i + 1])[0] for i in range(16)]
    assert torch.equal(apply_symmetry(batch, index), torch.stack(one_by_one))
    assert torch.equal(apply_symmetry(batch, torch.zeros(16, dtype=torch.uint8)), batch)


def test_shrink_leaves_the_56_px_hole_of_a_64_px_target() -> None:
    hole = shrink(torch.from_numpy(central(128))[None], 4)[0]
    assert hole[36:92, 36:92].all()
    assert hole.sum() == 56**2


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_shrink_keeps_pixels_whose_whole_window_is_hidden(margin: int) -> None:
    drawn = np.stack([mask_for(seed, "random_region", 64, "a", 0) for seed in range(3)])
    expected = np.zeros_like(drawn)
    for batch, row, column in np.ndindex(*drawn.shape):
        rows = slice(max(row - margin, 0), row + margin + 1)
        columns = slice(max(column - margin, 0), column + margin + 1)
        expected[batch, row, column] = drawn[batch, rows, columns].all()
    np.testing.assert_array_equal(shrink(torch.from_numpy(drawn), margin).numpy(), expected)
