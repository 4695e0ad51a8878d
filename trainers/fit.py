"""How many sequences go through the model at a time: arithmetic on bytes, for a choice before and for advice after an error.

The estimate is for choosing only, and leaves room; it counts what an eager step keeps for its backward. Tested as
arithmetic, not yet against a GPU.
"""

from __future__ import annotations

import torch

from trainers.flops import count_parameters
from trainers.losses import chunk_rows
from trainers.spec import ModelShape, TrialSpec

USABLE = 0.85
"""Share of a device's memory to plan with: context, libraries, workspaces and fragments take the rest."""


class DoesNotFitError(RuntimeError):
    """A step does not fit into the device's memory. The message says, in one line, what would."""


def resident_bytes(shape: ModelShape, precision: str) -> int:
    """Bytes that stay or recur whatever the micro-batch: 16 a parameter (master, two moments, gradient), in bf16 four more
    (working weight and its gradient), the head's gradient in float32, and one chunk of logits, as the kernel for the loss
    leaves it."""
    bf16 = precision == "bf16"
    head, itemsize = 4 * shape.vocab_size * shape.width, 2 if bf16 else 4
    chunk = itemsize * shape.vocab_size * chunk_rows(shape.vocab_size, itemsize)
    return count_parameters(shape).total * (20 if bf16 else 16) + head + chunk


def activation_bytes(shape: ModelShape, context: int, precision: str, checkpoint_activations: bool) -> int:
    """Bytes that one sequence keeps between forward and backward.

    A layer keeps, per position, its input and norm twice over (4 D), queries, keys and values before and after rotation and
    the attention's output twice (3 Q + 4 K widths each once more), and four MLP widths; with checkpointing its input alone,
    and one layer at a time the rest. Rotation and loss work in float32: 2 (Q + K) and 4 D more, for one layer at a time.
    """
    size = 2 if precision == "bf16" else 4
    query, key = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    experts = max(1, shape.experts_per_token)
    layer = size * (4 * shape.width + 4 * query + 4 * key + 4 * shape.mlp_width * experts)
    working = 4 * (2 * (query + key) + 4 * shape.width)
    kept = shape.num_layers * size * shape.width + layer if checkpoint_activations else shape.num_layers * layer
    return context * (kept + working)


def largest_divisor_that_fits(sequences: int, resident: float, per_sequence: float, capacity: float) -> int | None:
    """The largest divisor of `sequences` with `resident + divisor * per_sequence` within `capacity` bytes, if any."""
    fitting = (n for n in range(sequences, 0, -1) if sequences % n == 0 and resident + n * per_sequence <= capacity)
    return next(fitting, None)


def chosen_micro_sequences(spec: TrialSpec, device: torch.device, checkpoint_activations: bool) -> int:
    """The sequences that go through the model at a time where nobody said: on a CPU all of a step, on a GPU the largest
    divisor of them that the estimate lets into `USABLE` of its whole memory, and at least one.

    The whole memory and not what is free just now, so that a trial that goes on sums its gradients in the same parts.
    """
    if device.type != "cuda":
        return spec.sequences_per_step
    total = torch.cuda.get_device_properties(device).total_memory
    return estimated_micro_sequences(spec, total, checkpoint_activations) or 1


def estimated_micro_sequences(spec: TrialSpec, memory_bytes: float, checkpoint_activations: bool) -> int | None:
    """The largest micro-batch of `spec` that should fit a device of `memory_bytes`; None where not even one sequence does."""
    return largest_divisor_that_fits(
        spec.sequences_per_step,
        resident_bytes(spec.shape, spec.precision),
        activation_bytes(spec.shape, spec.context, spec.precision, checkpoint_activations),
        USABLE * memory_bytes,
    )


def advice(spec: TrialSpec, failed: int, peak_bytes: float, memory_bytes: float, checkpoint_activations: bool) -> str:
    """One line after `failed` sequences at a time ran out of memory, having used `peak_bytes` of `memory_bytes` by then.

    What grows with the micro-batch grows in proportion to it, so the peak is a lower bound of the slope; the estimate is
    the other, and the larger of the two counts.
    """
    resident = min(resident_bytes(spec.shape, spec.precision), peak_bytes)
    slope = max(
        (peak_bytes - resident) / failed,
        activation_bytes(spec.shape, spec.context, spec.precision, checkpoint_activations),
    )
    fits = largest_divisor_that_fits(spec.sequences_per_step, resident, slope, USABLE * memory_bytes)
    line = f"out of memory with micro_sequences = {failed} ({memory_bytes / 1e9:.0f} GB): "
    smaller = [n for n in range(1, failed) if spec.sequences_per_step % n == 0]
    if fits is not None and smaller:
        return line + f"micro_sequences = {min(fits, smaller[-1])} should fit"
    if not checkpoint_activations:
        return line + "no smaller micro-batch should fit; checkpoint activations, or take a device with more memory"
    return line + "not even one sequence at a time should fit; take a device with more memory"
