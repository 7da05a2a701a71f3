"""Choices that settings name; without torch, so that settings are read in a moment."""

from typing import Literal

Reconstruction = Literal["l2", "l1"]
"""Error of a pixel: squared or absolute."""
Precision = Literal["auto", "bf16", "fp32"]
"""Arithmetic of a forward pass and of what needs no scaled loss."""
TrainPrecision = Literal[Precision, "fp16"]
"""Arithmetic of a training step; auto is never fp16."""
Pool = Literal["none", "mean", "max"]
"""What becomes of a layer's map (C, H, W): all its values, or the mean or maximum per channel."""
