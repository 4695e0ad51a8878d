"""How much memory a training step takes, by arithmetic: whether a scale fits a device, on how many, and in which pieces.

Counts what an eager step keeps: weights, gradients, moments, activations, the loss's chunk. Held against measured peaks in
the tests (float32 on a CPU within 10 %). A compiled step keeps less, and what a CUDA context, workspaces and fragments take
is `USABLE`'s. Standard library only.

Widths in the formulas: D residual, Q all query heads, K all key (or value) heads, F MLP, X experts, k of them a position,
V vocabulary. Unless said otherwise in numbers of the working type, for each latent position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trainers.contract.flops import chunk_rows, count_parameters
from trainers.contract.schedule import number_of_heads
from trainers.contract.spec import ModelShape, TrialSpec
from trainers.methods import phases_of

USABLE = 0.85
"""Share of a device's memory that a step may take by this estimate; the rest is context, workspaces and fragments."""
MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on one device when the step takes most. `weights`, `gradients` and `moments` are this rank's shards;
    `gathered` what FSDP has unsharded just then; `activations` are those of one micro-batch, `loss` the workspace of the
    unembedding and of the first layer on the way back."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.gathered + self.activations + self.loss


@dataclass(frozen=True, slots=True)
class Fit:
    """A way to train in the memory of `gpus` devices, `needs` on each of them."""

    gpus: int
    micro_sequences: int
    checkpoint_activations: bool
    needs: Footprint


def footprint(
    spec: TrialSpec,
    micro_sequences: int,
    *,
    ranks: int = 1,
    checkpoint_activations: bool = False,
    device_kind: str = "cuda",
    gradients_stay: bool = True,
) -> Footprint:
    """The peak of a step that takes `micro_sequences` through the model at a time on each of `ranks` devices.

    `gradients_stay`: they keep their memory between steps (captured, or more than one micro-batch), otherwise they are not
    there yet when the activations are all kept. Formulas: `_layer`, `_loss`, `_resident`.
    """
    phases = phases_of(spec)
    heads, bag = number_of_heads(phases), max(phase.bag_size // phase.position_divisor for phase in phases)
    size = 2 if spec.precision == "bf16" else 4
    weights, gradients, moments, gathered = _resident(spec, heads, ranks)
    rows = micro_sequences * spec.context
    layers = spec.shape.num_layers + heads - 1
    norm = _norm(spec.shape, device_kind, size)
    layer = _layer(spec.shape, device_kind, size)
    kept = rows * layers * (size * spec.shape.width if checkpoint_activations else layer)
    again = rows * layer if checkpoint_activations else 0
    kept += rows * (heads * norm + 8 * (bag + heads))  # final norm; token ids and targets
    on_the_way_out = _loss(spec.shape, rows * heads, size, device_kind)
    on_the_way_back = _first_layer_back(spec.shape, rows, size) + again
    full = Footprint(weights, gradients, moments, gathered, kept, max(on_the_way_out, on_the_way_back))
    if gradients_stay:
        return full
    # Gradients take the activations' place one layer after the other: one of the two ends is the peak.
    early = replace(full, gradients=0)
    late = Footprint(weights, gradients, moments, gathered, 0, rows * bag * spec.shape.width * size)
    return max(early, late, key=lambda footprint: footprint.total)


def _resident(spec: TrialSpec, heads: int, ranks: int) -> tuple[int, int, int, int]:
    """Bytes a parameter: master 4, moments 8, gradient 4; in bf16 also the working weight's 2 and its gradient's 2.

    Over ranks masters, moments and gradients are shards. Gathered are embedding, head and last gain for the whole step, and
    two blocks' weights with one block's gradient (FSDP2 fetches the next block early), in bf16 reduced as float32.
    """
    shape = spec.shape
    count = count_parameters(shape, heads)
    root = 2 * count.embedding + shape.width
    block = (count.total - root) // (shape.num_layers + heads - 1)
    size = 2 if spec.precision == "bf16" else 4
    # One device: bf16 training keeps a working copy of each weight and of its gradient beside the float32 masters.
    if ranks == 1:
        working = 2 if spec.precision == "bf16" else 0
        return (4 + working) * count.total, (4 + working) * count.total, 8 * count.total, 0
    shard = -(-count.total // ranks)
    reduced = 4 if spec.precision == "bf16" else 0
    return 4 * shard, 4 * shard, 8 * shard, 2 * size * root + (3 * size + reduced) * block


def _norm(shape: ModelShape, device_kind: str, size: int) -> int:
    """Bytes an RMSNorm keeps a position: input, output, deviation; without a fused kernel (CPU) the normalised input too."""
    return size * shape.width * (2 if device_kind == "cuda" else 3) + 4


def _layer(shape: ModelShape, device_kind: str, size: int) -> int:
    """Bytes a block keeps a position for its backward.

    Two norms. Attention: the joined projection (Q + 2K), queries and keys turned (Q + K), the output (Q) and a float32
    log-sum a head; with QK-norm another copy of the output (Q), whose layout has changed, and the norms' own.
    MLP: both halves of the projection (2F), the gate's activation (F), the product (F). Experts: that k times, with the
    sorted inputs (D) and the collected outputs (D), and of the router its float32 input, probabilities and indices.
    """
    query, key = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    kept = 2 * _norm(shape, device_kind, size)
    kept += size * (3 * query + 3 * key) + 4 * shape.num_heads
    if shape.qk_norm:
        kept += size * query + 4 * (shape.num_heads + shape.num_kv_heads)
        kept += size * (query + key) if device_kind != "cuda" else 0
    if not shape.num_experts:
        return kept + size * 4 * shape.mlp_width
    chosen = shape.experts_per_token
    kept += chosen * (size * (2 * shape.width + 4 * shape.mlp_width) + 32) + 4 * shape.num_experts
    return kept + (4 * shape.width if size == 2 else 0)


def _loss(shape: ModelShape, rows: int, size: int, device_kind: str) -> int:
    """Bytes at the unembedding: the hidden states' gradient, the head's in float32, and one chunk of logits, which in bf16
    without the fused kernel exists three times (2 + 4 + 2 bytes); or, when it is over, both gradients twice."""
    chunk = min(rows, chunk_rows(shape.vocab_size, size)) * shape.vocab_size
    head, hidden = shape.vocab_size * shape.width, rows * shape.width
    # The fused kernel writes the gradient over the logits; without it, bf16 logits, their float32 copy and the
    # gradient exist side by side.
    logits = chunk * (8 if size == 2 and device_kind != "cuda" else size)
    return max(size * hidden + 4 * head + logits, 2 * size * (hidden + head))


def _first_layer_back(shape: ModelShape, rows: int, size: int) -> int:
    """Bytes while the last block goes back: the head's gradient, and the larger of what a norm and what an MLP needs."""
    inner = shape.mlp_width * max(1, shape.experts_per_token)
    head = shape.vocab_size * shape.width
    mlp = rows * (2 * inner - 2 * shape.width) + shape.width * shape.mlp_width * max(1, shape.num_experts)
    return size * (head + max(3 * rows * shape.width, mlp))


def largest_micro_batch(
    spec: TrialSpec,
    memory_bytes: float,
    *,
    ranks: int = 1,
    checkpoint_activations: bool = False,
    device_kind: str = "cuda",
) -> int | None:
    """Most sequences that can go through the model at a time on a device of `memory_bytes`: a divisor of a rank's share of
    the step's sequences. None where not one fits, or the ranks cannot share the sequences equally."""
    way = way_to_fit(spec, memory_bytes, ranks, recompute=checkpoint_activations, device_kind=device_kind)
    return way.micro_sequences if way else None


def way_to_fit(
    spec: TrialSpec,
    memory_bytes: float,
    gpus: int,
    *,
    recompute: bool = False,
    device_kind: str = "cuda",
    micro_sequences: int | None = None,
) -> Fit | None:
    """How `spec` trains on `gpus` devices of `memory_bytes` each: with `micro_sequences` at a time, else with as many as
    fit. None where it does not fit, or the ranks cannot have equal shares."""
    share, rest = divmod(spec.sequences_per_step, gpus)
    if rest:
        return None
    for micro in (micro_sequences,) if micro_sequences else divisors_down(share):
        needs = footprint(
            spec,
            micro,
            ranks=gpus,
            checkpoint_activations=recompute,
            device_kind=device_kind,
            gradients_stay=device_kind == "cuda" or micro < share,
        )
        if needs.total <= USABLE * memory_bytes:
            return Fit(gpus, micro, recompute, needs)
    return None


def divisors_down(number: int) -> Iterator[int]:
    """Its divisors, the largest first."""
    return (divisor for divisor in range(number, 0, -1) if number % divisor == 0)


def fewest_gpus(spec: TrialSpec, memory_bytes: float, *, recompute: bool = False) -> Fit | None:
    """The way to train on as few devices of `memory_bytes` as can be: 1, 2, 4, ... up to `MOST_GPUS`; None if there is none."""
    gpus = 1
    while gpus <= MOST_GPUS:
        if fit := way_to_fit(spec, memory_bytes, gpus, recompute=recompute):
            return fit
        gpus *= 2
    return None
