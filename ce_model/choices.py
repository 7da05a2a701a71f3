"""Choices that settings name; without torch, so that settings are read in a moment."""

from typing import Literal

Reconstruction = Literal["l2", "l1"]
"""Error of a pixel: squared or absolute."""
Precision = Literal["auto", "bf16", "fp32"]
"""Arithmetic of a step."""
Pool = Literal["none", "mean", "max"]
"""What becomes of a layer's map (C, H, W): all its values, or the mean or maximum per channel."""
