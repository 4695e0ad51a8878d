"""The decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU or a mixture of experts, untied embeddings.

Decides the architecture and its initialisation. What goes in (bags or single tokens) and what is asked of the output are
the method's and `losses`'s. The same code trains eagerly, compiled and captured, so nothing here looks at a value.

Shapes: B sequences, L latent positions, S tokens a bag, D residual width, H query heads, K key-value heads, E head width,
F MLP width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainers.contract.routing import RoutingPoint
from trainers.contract.spec import ModelShape
from trainers.model.moe import Mixture, routing_point
from trainers.model.ranks import fill
from trainers.superposition import mean_of_bags

EMBEDDING_DEVIATION = 1.0
"""Standard deviation of the initial embeddings, as in TorchTitan; other weights get `1/sqrt(inputs)`, which is TorchTitan's
0.02 at width 2,048 and learns faster than 0.02 at the small widths; projections into the residual stream get
`1/sqrt(2*layers)` of that (GPT-2)."""

Inside = Callable[..., Tensor]
"""A block or its compiled code: residual stream and rotary table, and for experts what they count, to the residual stream."""


def rotary_table(context: int, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of every position's angles, float32 `[L, E]` each. Positions count latent positions.

    Both halves of the features turn by the same angles; the sine's first half is negative, so that `rotate` is a swap of
    halves, a product and a multiply-add: three operations where a small model's step is made of overhead.
    """
    # In float64: a float32 angle of the fastest pair is off by 1e-4 at position 2,000.
    inverse_frequency = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle_LF = torch.outer(torch.arange(context, dtype=torch.float64), inverse_frequency)
    cosine_LF, sine_LF = angle_LF.cos().float(), angle_LF.sin().float()
    return torch.cat((cosine_LF, cosine_LF), -1), torch.cat((-sine_LF, sine_LF), -1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn feature pairs (i, i + E/2) of `x` `[..., E]` by their position's angle, in float32, back in the input's type. The
    table is given in a shape that meets the positions: `[L, 1, E]` where heads lie behind them."""
    exact = x.float()
    swapped = exact.roll(exact.shape[-1] // 2, dims=-1)
    return torch.addcmul(exact * cosine, swapped, sine).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a gain."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


class Attention(nn.Module):
    """Causal grouped-query attention over latent positions."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        query, key = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
        # One matmul for all three, as for gate and up below: a small model's step is made of launches.
        self.query_key_value = nn.Linear(shape.width, query + 2 * key, bias=False)
        self.output = nn.Linear(query, shape.width, bias=False)
        if shape.qk_norm:
            self.query_norm = RMSNorm(shape.head_width, shape.norm_epsilon)
            self.key_norm = RMSNorm(shape.head_width, shape.norm_epsilon)

    def forward(self, x_BLD: Tensor, cosine_LE: Tensor, sine_LE: Tensor) -> Tensor:
        shape = self.shape
        batch, length, _ = x_BLD.shape
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        cosine_L1E, sine_L1E = cosine_LE[:, None], sine_LE[:, None]
        joined = self.query_key_value(x_BLD).view(batch, length, heads + 2 * kv_heads, shape.head_width)
        query_BLHE, key_BLKE, value_BLKE = joined.split((heads, kv_heads, kv_heads), dim=2)
        if shape.qk_norm:
            query_BLHE, key_BLKE = self.query_norm(query_BLHE), self.key_norm(key_BLKE)
        if shape.qk_norm or torch.compiler.is_compiling():
            # Each becomes one kernel in the order that memory has; turned together, the backward keeps a float32 copy of both.
            query_BLHE, key_BLKE = (rotate(x, cosine_L1E, sine_L1E) for x in (query_BLHE, key_BLKE))
        else:
            # Eagerly an operation on both costs what one on the queries costs: 2 % of a step of the smallest model.
            turned = rotate(joined[:, :, : heads + kv_heads], cosine_L1E, sine_L1E)
            query_BLHE, key_BLKE = torch.split(turned, [heads, kv_heads], dim=2)
        # Grouped queries are left to the kernel: repeating keys and values would write them as often as there are query heads.
        mixed_BHLE = F.scaled_dot_product_attention(
            query_BLHE.transpose(1, 2),
            key_BLKE.transpose(1, 2),
            value_BLKE.transpose(1, 2),
            is_causal=True,
            enable_gqa=heads != kv_heads,
        )
        mixed: Tensor = self.output(mixed_BHLE.transpose(1, 2).reshape(batch, length, heads * shape.head_width))
        return mixed


class SwiGLU(nn.Module):
    """Gated MLP: `down(silu(gate(x)) * up(x))`, gate and up in one matmul."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_up = nn.Linear(shape.width, 2 * shape.mlp_width, bias=False)
        self.down = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        gate_BLF, up_BLF = self.gate_up(x_BLD).chunk(2, dim=-1)
        down: Tensor = self.down(F.silu(gate_BLF) * up_BLF)
        return down


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.width, shape.norm_epsilon)
        self.attention = Attention(shape)
        self.mlp_norm = RMSNorm(shape.width, shape.norm_epsilon)
        self.mlp = Mixture(shape) if shape.num_experts else SwiGLU(shape)

    def forward(self, x_BLD: Tensor, cosine_LE: Tensor, sine_LE: Tensor, *counted: Tensor) -> Tensor:
        """`counted`, where it is given, is what a mixture of experts takes."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cosine_LE, sine_LE)
        x_BLD = x_BLD + self.mlp(self.mlp_norm(x_BLD), *counted)
        return x_BLD


def _counting_once(inside: Inside, x_BLD: Tensor, cosine_LE: Tensor, sine_LE: Tensor) -> Tensor:
    """A block of experts where it may be repeated inside a backward, which must not count its assignments again.

    Told by a value and not by another path: both runs are one compiled program, which keeps the same tensors.
    """
    repeated = torch._C._current_graph_task_id() != -1
    return inside(x_BLD, cosine_LE, sine_LE, torch.full((), int(not repeated), device=x_BLD.device))


class Decoder(nn.Module):
    """`forward` gives the normalised hidden states; `losses` multiplies them by `head`, in chunks.

    A head beyond the ordinary one is a last block of its own on the blocks before the last (arXiv 2404.19737); final norm
    and unembedding are shared. What is not asked of it costs nothing: alone, the ordinary head is the plain decoder.
    """

    cosine_LE: Tensor
    sine_LE: Tensor

    def __init__(self, shape: ModelShape, context: int, heads: int = 1) -> None:
        super().__init__()
        self.shape = shape
        self.checkpoint_activations = False
        self.embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.width, shape.norm_epsilon)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        self.extra_blocks = nn.ModuleList(Block(shape) for _ in range(heads - 1))
        cosine_LE, sine_LE = rotary_table(context, shape.head_width, shape.rope_theta)
        self.register_buffer("cosine_LE", cosine_LE, persistent=False)
        self.register_buffer("sine_LE", sine_LE, persistent=False)

    def embed(self, tokens_BLS: Tensor) -> Tensor:
        """Mean embedding of each bag, summed in float32, in the embedding's type `[B, L, D]`.

        A bag of one is that token's embedding to the last bit.
        """
        return mean_of_bags(tokens_BLS, self.embedding.weight)

    def body(self, x_BLD: Tensor, heads: int = 1, insides: Mapping[nn.Module, Inside] | None = None) -> Tensor:
        """Embedded positions `[B, L, D]` to hidden states `[heads*B, L, D]`, the ordinary head's first: what no bag size
        changes. `insides` are called in place of their blocks: compiled ones, where the body is not compiled as a whole."""
        inside = {} if insides is None else insides
        length = x_BLD.shape[1]
        cosine_LE, sine_LE = self.cosine_LE[:length], self.sine_LE[:length]
        # Further heads have a last block each, on what comes before the ordinary one's.
        *trunk, last = self.blocks
        for block in trunk:
            x_BLD = self._through(inside.get(block, block), x_BLD, cosine_LE, sine_LE)
        lasts = (last, *list(self.extra_blocks)[: heads - 1])
        ends = [self._through(inside.get(block, block), x_BLD, cosine_LE, sine_LE) for block in lasts]
        hidden: Tensor = self.norm(ends[0] if heads == 1 else torch.cat(ends))
        return hidden

    def _through(self, inside: Inside, x_BLD: Tensor, cosine_LE: Tensor, sine_LE: Tensor) -> Tensor:
        """One block; with `checkpoint_activations` its inside is computed again in the backward instead of being kept."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            again = partial(_counting_once, inside) if self.shape.num_experts else inside
            out: Tensor = checkpoint(
                again, x_BLD, cosine_LE, sine_LE, use_reentrant=False, preserve_rng_state=False
            )  # nothing random, and a captured graph must not ask for the generator's state
            return out
        return inside(x_BLD, cosine_LE, sine_LE)

    def forward(self, tokens_BLS: Tensor, heads: int = 1) -> Tensor:
        """Bags of token ids `[B, L, S]` to hidden states `[heads*B, L, D]`; position j sees bags 0..j only."""
        return self.body(self.embed(tokens_BLS), heads)

    def _mixtures(self) -> list[Mixture]:
        return [module for module in self.modules() if isinstance(module, Mixture)]

    def set_micro_batches(self, parts: int) -> None:
        """How many micro-batches share a step: what a mixture of experts adds to the gradient is divided by it."""
        for mixture in self._mixtures():
            mixture.micro_batches = parts

    def end_step(self) -> None:
        """Close the step's routing counts. On the device only, so that it may be part of a captured update."""
        for mixture in self._mixtures():
            mixture.end_step()

    def routing(self, *, keep_load: bool) -> RoutingPoint | None:
        """What the last optimizer step's routing was; None for a dense decoder. Waits for the device.

        The layers that every phase of a run has: those of further output heads come and go.
        """
        mixtures = [block.mlp for block in self.blocks if isinstance(block.mlp, Mixture)]
        return routing_point(mixtures, keep_load=keep_load) if mixtures else None


@torch.no_grad()
def initialise(model: Decoder, seed: int, only: tuple[str, ...] | None = None) -> None:
    """Draw every weight, or those named `only`, from one CPU generator in the order of `named_parameters`: the same on
    every device, and with extra heads as without."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if only is not None and name not in only:
            continue
        if parameter.dim() < 2:
            parameter.fill_(1.0)
            continue
        deviation = EMBEDDING_DEVIATION if name == "embedding.weight" else 1 / math.sqrt(parameter.shape[-1])
        if name.endswith(("attention.output.weight", "mlp.down.weight", "mlp.down")):
            # Two projections a layer add to the residual stream, whose variance should not grow with depth.
            deviation /= math.sqrt(2 * model.shape.num_layers)
        # Drawn whole also where ranks keep some rows: the draw must not depend on their number.
        fill(parameter, torch.randn(parameter.shape, generator=generator) * deviation)


def build_model(shape: ModelShape, context: int, seed: int, device: torch.device, heads: int = 1) -> Decoder:
    """An initialised decoder with `heads` output heads, in float32 on `device`."""
    model = Decoder(shape, context, heads)
    initialise(model, seed)
    return model.to(device)
