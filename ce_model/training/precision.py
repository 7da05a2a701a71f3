"""The arithmetic of a step: float32, or half of its bits where the device computes in them."""

import torch
import torch.distributed

from ce_model.choices import TrainPrecision


def resolve_precision(requested: TrainPrecision, device: torch.device | str) -> torch.dtype:
    """What was requested; `auto` is bfloat16 where the processor computes in it, else float32.

    Without instructions for it (amx_bf16 or avx512_bf16 on a CPU), bf16 is slower than fp32.
    """
    kind = torch.device(device).type
    if requested == "fp16":
        if kind != "cuda":
            raise ValueError(
                f"precision is fp16; this {kind} device has no fast fp16 arithmetic, which is for "
                "CUDA GPUs: use auto or fp32"
            )
        return torch.float16
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
    """Mixed precision where `dtype` is bfloat16 or float16; nothing for float32."""
    half = dtype if dtype != torch.float32 else torch.bfloat16  # which torch wants to hear of
    return torch.autocast(device.type, half, enabled=dtype != torch.float32)
