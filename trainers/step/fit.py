"""How many sequences go through the model at a time: a choice before, and advice after an error.

The arithmetic is `footprint`'s; what the device has and had is asked here.
"""

from __future__ import annotations

import torch

from trainers.contract.spec import TrialSpec
from trainers.planning.footprint import USABLE, divisors_down, footprint, largest_micro_batch


class DoesNotFitError(RuntimeError):
    """A step does not fit into the device's memory. The message says, in one line, what would."""


def chosen_micro_sequences(spec: TrialSpec, device: torch.device, checkpoint_activations: bool, ranks: int = 1) -> int:
    """The sequences that go through a rank's model at a time where nobody said: on a CPU its share of a step, on a GPU the
    largest divisor of that which the estimate lets into `USABLE` of its whole memory, and at least one.

    The whole memory and not what is free just now, so that a trial that goes on sums its gradients in the same parts.
    """
    if device.type != "cuda":
        return spec.sequences_per_step // ranks
    total = torch.cuda.get_device_properties(device).total_memory
    return largest_micro_batch(spec, total, ranks=ranks, checkpoint_activations=checkpoint_activations) or 1


def advice(
    spec: TrialSpec,
    failed: int,
    peak_bytes: float,
    memory_bytes: float,
    checkpoint_activations: bool,
    ranks: int = 1,
) -> str:
    """One line after `failed` sequences at a time ran out of memory, having used `peak_bytes` of `memory_bytes` by then.

    The peak is a lower bound of what they would have taken: what it exceeds the estimate by is put on the activations,
    which grow in proportion to the micro-batch.
    """

    def estimate(sequences: int) -> int:
        return footprint(spec, sequences, ranks=ranks, checkpoint_activations=checkpoint_activations).total

    missed = max(0.0, peak_bytes - estimate(failed)) / failed
    smaller = (n for n in divisors_down(spec.sequences_per_step // ranks) if n < failed)
    fits = next((n for n in smaller if estimate(n) + n * missed <= USABLE * memory_bytes), None)
    line = f"out of memory with micro_sequences = {failed} ({memory_bytes / 1e9:.0f} GB): "
    if fits is not None:
        return line + f"micro_sequences = {fits} should fit"
    if not checkpoint_activations:
        return line + "no smaller micro-batch should fit; checkpoint activations, or take a device with more memory"
    return line + "not even one sequence at a time should fit; take a device with more memory"
