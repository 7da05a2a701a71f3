"""The arithmetic of a step: float32, or bfloat16 where the device has it."""

import torch
import torch.distributed

from ce_model.choices import Precision


def resolve_precision(requested: Precision, device: torch.device | str) -> torch.dtype:
    """float32, or bfloat16 where the processor computes in it.

    Without instructions for it (amx_bf16 or avx512_bf16 on a CPU), bf16 is slower than fp32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        supported = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        supported = False
    if requested == "bf16" and not supported:
        raise ValueError(
            f"precision is bf16; this {kind} device has no bf16 arithmetic (on a CPU: amx_bf16 or "
            "avx512_bf16) and would be slower than in fp32; use auto or fp32"
        )
    return torch.bfloat16 if supported and requested != "fp32" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision where `dtype` is bfloat16; else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
