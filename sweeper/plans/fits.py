"""Whether each scale of a sweep fits the devices that its trials get, and on how many it would: said before anything starts.

The arithmetic is `trainers.planning.footprint`'s; here it meets what the search space asks for and what a device has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sweeper.space.schema import SearchSpace, values_of
from sweeper.space.trials import make_spec
from trainers.contract.errors import InputError
from trainers.contract.spec import TrialSpec, own
from trainers.planning.footprint import MOST_GPUS, USABLE, Fit, fewest_gpus, footprint, way_to_fit

ASSUMED_GPU_BYTES = 141e9
"""An H200's. Where a sweep will run on other GPUs, `resources.gpu_memory_gb` says so."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of one device of `kind` (`cuda`, `cpu`), and in words where the figure comes from."""

    kind: str
    bytes: float
    source: str


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """One scale on the devices of a trial. `way` is how the method that takes most memory trains there, None where it does
    not fit; `fewest` the way on as few GPUs as can be, None where none is known or trials run on CPUs."""

    scale: str
    gpus: float
    memory: DeviceMemory
    least_bytes: int
    way: Fit | None
    fewest: Fit | None

    @property
    def sentence(self) -> str:
        """In words, for the plan."""
        device = f"{self.memory.bytes / 1e9:,.3g} GB {self.memory.source}"
        if self.way is None:
            return f"does not fit: {self._needs}"
        needs = f"{self.way.needs.total / 1e9:,.3g} GB of {device}"
        where = f"on {_gpus(self.gpus)} a trial" if self.gpus else "on the CPU"
        said = f"fits {where} with {_sequences(self.way)} ({needs})"
        if self.fewest is not None and self.fewest.gpus != self.way.gpus:
            said += f"; fewest GPUs: {self.fewest.gpus}, with {_sequences(self.fewest)}"
        return said

    @property
    def refusal(self) -> str | None:
        """One line for the user where the scale does not fit, else None."""
        return None if self.way is not None else f"scales: {self.scale} does not fit: {self._needs}"

    @property
    def _needs(self) -> str:
        where = f"each of {_gpus(self.gpus)}" if self.gpus > 1 else "a GPU" if self.gpus else "the CPU"
        line = (
            f"a step takes at least {self.least_bytes / 1e9:,.3g} GB on {where}, of which {USABLE:.0%} of "
            f"{self.memory.bytes / 1e9:,.3g} GB can be used ({self.memory.source})"
        )
        if self.fewest is not None:
            return f"{line}; resources.gpus: {self.fewest.gpus} would do"
        return line + (f"; no number of GPUs up to {MOST_GPUS} would do" if self.gpus else "")


def _gpus(number: float) -> str:
    return f"{number:g} GPU" + ("s" if number > 1 else "")


def _sequences(way: Fit) -> str:
    again = ", activations computed again" if way.checkpoint_activations else ""
    return f"{way.micro_sequences:,} sequence{'s' if way.micro_sequences > 1 else ''} at a time{again}"


def device_memory(space: SearchSpace, gpus: float) -> DeviceMemory:
    """What a trial's device has: as the file says, as this machine's has, or assumed. A share of a GPU has that share."""
    if not gpus:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return DeviceMemory("cpu", float(pages), "of this machine")
    share = min(gpus, 1.0)
    if space.resources.gpu_memory_gb is not None:
        return DeviceMemory("cuda", share * space.resources.gpu_memory_gb * 1e9, "as resources.gpu_memory_gb says")
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        return DeviceMemory("cuda", share * total, "as this machine's GPUs have")
    return DeviceMemory("cuda", share * ASSUMED_GPU_BYTES, "assumed, an H200's; resources.gpu_memory_gb says otherwise")


def fits_of(
    space: SearchSpace, gpus: float, memory: DeviceMemory, micro_sequences: int | None, *, recompute: bool = False
) -> Mapping[str, ScaleFit]:
    """Every scale with the method and parameters that take most. `micro_sequences` None: as many at a time as fit (on a
    CPU all of a step); `recompute` says that activations are computed again."""
    return {scale: _fit(space, scale, gpus, memory, micro_sequences, recompute) for scale in space.scales}


def _fit(
    space: SearchSpace, scale: str, gpus: float, memory: DeviceMemory, micro_sequences: int | None, recompute: bool
) -> ScaleFit:
    ranks = max(1, int(gpus))
    everything = space.tokens_per_step // space.context // ranks
    # A GPU's memory is small and its work can be cut into sequences; a CPU's is large, and cutting there only costs
    # time.
    least = micro_sequences or (1 if gpus else everything)

    def needs(spec: TrialSpec) -> int:
        return footprint(
            spec, least, ranks=ranks, checkpoint_activations=recompute, device_kind=memory.kind,
            gradients_stay=bool(gpus) or least < everything,
        ).total  # fmt: skip

    # If the largest fits, all do: one refusal before anything starts, rather than a failed trial hours later.
    largest = max(_examples(space, scale), key=needs)
    way = way_to_fit(
        largest,
        memory.bytes,
        ranks,
        recompute=recompute,
        device_kind=memory.kind,
        micro_sequences=least if micro_sequences or not gpus else None,
    )
    return ScaleFit(
        scale=scale,
        gpus=gpus,
        memory=memory,
        least_bytes=needs(largest),
        way=way,
        fewest=fewest_gpus(largest, memory.bytes, recompute=recompute) if gpus >= 1 else None,
    )


def _examples(space: SearchSpace, scale: str) -> Iterator[TrialSpec]:
    """For every method the spec with the largest value on each axis: bags and heads cost memory, nothing else does."""
    for name, method in space.methods.items():
        yield own(
            make_spec(
                space,
                scale=scale,
                method=name,
                parameters={axis: values_of(given)[-1] for axis, given in method.axes.items()},
                total_steps=method.budgets.confirmation[-1],
                seed=space.seeds.tuning[0],
                corpus_fingerprint="",
                tokenizer_fingerprint="",
                vocab_size=space.tokenizer.vocab_size,
            )
        )


def refuse_what_does_not_fit(fits: Mapping[str, ScaleFit]) -> None:
    """Raise `InputError`, in one line, for the first scale that does not fit its trials' devices."""
    for fit in fits.values():
        if fit.refusal is not None:
            raise InputError(fit.refusal)
