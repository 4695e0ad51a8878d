"""Which attention kernel runs: forced in the order that is fastest on a GPU, and reported.

At head width 64 cuDNN's kernel is reported about twice as fast as FlashAttention-2 on Hopper, and torch does not always
choose it. On a CPU there is one fused kernel, which torch takes by itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainers.contract.spec import ModelShape

GPU_ORDER = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
NAMES = {
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.MATH: "math",
}


def forced_attention(device: torch.device) -> AbstractContextManager[object]:
    """Forward, backward and compilation inside take the first kernel of `GPU_ORDER` that can do what is asked."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(list(GPU_ORDER), set_priority=True)


def attention_backend(shape: ModelShape, context: int, precision: str, device: torch.device) -> str:
    """Name of the kernel that `forced_attention` brings for such a decoder in training: what torch itself would choose."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    query_BHLE, key_BKLE = (
        torch.empty(1, heads, context, shape.head_width, dtype=dtype, device=device, requires_grad=True)
        for heads in (shape.num_heads, shape.num_kv_heads)
    )
    with forced_attention(device):
        choice = torch._fused_sdp_choice(
            query_BHLE, key_BKLE, key_BKLE, is_causal=True, enable_gqa=shape.num_heads != shape.num_kv_heads
        )
    return NAMES[SDPBackend(choice)]
