"""Which attention kernel runs: forced in the order that is fastest on a GPU, left out where it does not work, and reported.

At head width 64 cuDNN's kernel is reported about twice as fast as FlashAttention-2 on Hopper, and torch does not always
choose it. On a CPU there is one fused kernel, which torch takes by itself.

Shapes: B sequences, H query heads, K key-value heads, L positions, E head width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
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
MOST_ERROR = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative L2 difference of a kernel's gradients from `MATH`'s: several times what rounding makes (TF32 matmuls on a
GPU, eight bits in bfloat16), far below that of a wrong mask or a wrong scale."""

Kernels = tuple[SDPBackend, ...]


@cache
def attention_kernels(shape: ModelShape, context: int, precision: str, device: torch.device) -> Kernels:
    """The kernels that train such a decoder on `device`, the fastest first; none where torch chooses by itself (a CPU).

    Tried once a process, forward and backward: torch's own check says what a kernel claims, and cuDNN has plans that
    pass it and then fail or give NaN (pytorch #138529, #140930).
    """
    if device.type != "cuda":
        return ()
    return kernels_that_work(GPU_ORDER, lambda kernel: kernel_error(kernel, shape, context, precision, device))


def kernels_that_work(order: Kernels, error_of: Callable[[SDPBackend], float]) -> Kernels:
    """Those of `order` for which `error_of` gives a number up to 1; whatever it raises leaves the kernel out. `MATH`, which
    the others are compared with, always stays."""

    def works(kernel: SDPBackend) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch tells at length why a kernel is not for it
                return error_of(kernel) <= 1.0  # no for a NaN
        except torch.OutOfMemoryError:  # `MATH` keeps all pairs of positions: nothing against the kernel
            return True
        except Exception:  # not there, not built for this shape, or broken: another kernel takes its place
            return False

    return tuple(kernel for kernel in order if kernel == SDPBackend.MATH or works(kernel))


def kernel_error(kernel: SDPBackend, shape: ModelShape, context: int, precision: str, device: torch.device) -> float:
    """How far a kernel's output and gradients are from `MATH`'s on random inputs, in units of `MOST_ERROR`; NaN where one of
    them is. Raises what the kernel raises."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    drawn = [torch.randn(1, context, n, shape.head_width, generator=generator) for n in heads]
    grad_BHLE = torch.randn(1, heads[0], context, shape.head_width, generator=generator)
    grad_BHLE = grad_BHLE.to(device, dtype)

    def results(chosen: SDPBackend) -> list[Tensor]:
        # Transposed views, as the decoder has them: a kernel's plan depends on the layout.
        inputs = [part.to(device, dtype).transpose(1, 2).requires_grad_() for part in drawn]
        with sdpa_kernel([chosen]):
            out_BHLE = F.scaled_dot_product_attention(
                inputs[0], inputs[1], inputs[2], is_causal=True, enable_gqa=heads[0] != heads[1]
            )
            return [out_BHLE.detach(), *torch.autograd.grad(out_BHLE, inputs, grad_BHLE)]

    pairs = zip(results(kernel), results(SDPBackend.MATH), strict=True)
    errors = [float((got.float() - want.float()).norm() / want.float().norm()) for got, want in pairs]
    return math.nan if any(math.isnan(error) for error in errors) else max(errors) / MOST_ERROR[dtype]


def forced_attention(kernels: Kernels) -> AbstractContextManager[object]:
    """Forward, backward and compilation inside take the first of `kernels` that can do what is asked; with none of them
    given, torch's own choice."""
    return sdpa_kernel(list(kernels), set_priority=True) if kernels else nullcontext()


def attention_backend(shape: ModelShape, context: int, precision: str, device: torch.device) -> str:
    """Name of the kernel that such a decoder trains with: the first that works on a GPU, on a CPU torch's own choice."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    query_BHLE, key_BKLE = (
        torch.empty(1, heads, context, shape.head_width, dtype=dtype, device=device, requires_grad=True)
        for heads in (shape.num_heads, shape.num_kv_heads)
    )
    with forced_attention(attention_kernels(shape, context, precision, device)):
        choice = torch._fused_sdp_choice(
            query_BHLE, key_BKLE, key_BKLE, is_causal=True, enable_gqa=shape.num_heads != shape.num_kv_heads
        )
    return NAMES[SDPBackend(choice)]
