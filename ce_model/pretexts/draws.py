"""Chance of the pretexts: numbers that follow from the seed, the step and the image alone.

No generator has a state: each image of a batch is hashed with its step, on the device. So a batch
gives the same samples for any number of ranks, in parts, and after a resume.

An origin is int64 (B, 2): the number of the image's row in its split, and the hash.

Source: splitmix64 of Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014, with the multipliers of Stafford's mix 13.
"""

import torch
from torch import Tensor

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15
MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31
BITS = 53  # of a float64
FIXED_STEP = -1  # of no training


def origin_of(row: Tensor, step: Tensor, seed: int) -> Tensor:
    """Where the images of a batch draw from.

    Args:
        row: numbers of their rows, distinct in a step.
        step: number of the step, for each image.
        seed: of the training, 0 or more.

    Shape:
        row, step: integers (B,); result: int64 (B, 2).
    """
    row = row.long()
    of_step = _mix(step.long() + _signed(seed * GOLDEN))
    return torch.stack([row, _mix(of_step + row)], dim=1)


def fixed_origin(row: Tensor) -> Tensor:
    """Of images that are looked at again and again; no training ever draws the same."""
    return origin_of(row, torch.full_like(row, FIXED_STEP), 0)


def uniform(origin: Tensor, count: int) -> Tensor:
    """Numbers from 0 to below 1 for each image: float64 (B, count)."""
    counter = torch.arange(1, count + 1, device=origin.device) * _signed(GOLDEN)
    bits = _shifted(_mix(origin[:, 1:] + counter), 64 - BITS)
    drawn: Tensor = bits.double() / float(2**BITS)
    return drawn


def between(share: Tensor, low: float, high: float) -> Tensor:
    """Shares of 0 to 1 as values from low to high."""
    return low + share * (high - low)


def whole(share: Tensor, count: int | Tensor) -> Tensor:
    """Shares of 0 to below 1 as int64 numbers from 0 to below the count."""
    return (share * count).long()


def _mix(x: Tensor) -> Tensor:
    for shift, factor in MIXERS:
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return x ^ _shifted(x, LAST_SHIFT)


def _shifted(x: Tensor, count: int) -> Tensor:
    """To the right, as if the 64 bits had no sign."""
    unsigned: Tensor = (x >> count) & (2 ** (64 - count) - 1)
    return unsigned


def _signed(value: int) -> int:
    """The lowest 64 bits as an int64 has them."""
    value %= WORD
    return value - WORD if value >= WORD // 2 else value
