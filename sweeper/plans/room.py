"""What a trial gets on a machine or a cluster, found out once: its devices, how many run at a time, whether they fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.options import RunOptions
from sweeper.plans.fits import ScaleFit, device_memory, fits_of, refuse_what_does_not_fit
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.schema import SearchSpace
from trainers.contract.errors import UserError
from trainers.training.devices import cpu_name, device_name


@dataclass(frozen=True, slots=True)
class Room:
    """`gpus` are those of one trial (0: it trains on CPUs, below 1: its share of one), `cpus` the cores that the file
    gives it, `workers` how many trials run at once, `device` the name that step times are looked up by, `fits` how each
    scale trains there."""

    gpus: float
    cpus: int
    workers: int
    device: str
    fits: Mapping[str, ScaleFit]

    @property
    def on_gpu(self) -> bool:
        """Whether trials train on GPUs."""
        return self.gpus > 0

    @property
    def devices(self) -> float:
        """Devices that a trial's clock counts: GPUs or a share of one, or the CPUs where it has none."""
        if not self.on_gpu:
            return self.cpus
        return self.gpus if self.gpus < 1 else int(self.gpus)


def find_room(
    space: AnySpace, options: RunOptions, cores: int | None = None, available_gpus: float | None = None
) -> Room:
    """The room of a trial where there are `cores` and `available_gpus`; by default those of this machine.

    Raises `InputError` for the first scale that does not fit.
    """
    if available_gpus is None:
        available_gpus = gpus_here() if space.resources.gpus != 0 else 0
    cores = cores or len(os.sched_getaffinity(0))
    wanted = space.resources.gpus
    gpus = float(available_gpus > 0) if wanted == "auto" else float(wanted)
    # A plan for GPUs may be made where there is none: it reckons with one.
    at_once = int(max(available_gpus, 1) / gpus) if gpus else cores // space.resources.cpus
    # What another trainer's step takes is not known.
    fits = _fits(space, gpus, options) if isinstance(space, SearchSpace) else {}
    refuse_what_does_not_fit(fits)
    return Room(gpus, space.resources.cpus, options.workers or max(1, at_once), _device(gpus), fits)


def refuse_too_little(room: Room, *, gpus: float, cpus: float, where: str) -> None:
    """Raise `UserError` where a trial wants more than there is."""
    for what, wanted, there in (("gpus", room.gpus, gpus), ("cpus", room.cpus, cpus)):
        if wanted > there:
            raise UserError(f"resources.{what}: {wanted:g} wanted for a trial, {where} has {there:g}")


def _fits(space: SearchSpace, gpus: float, options: RunOptions) -> Mapping[str, ScaleFit]:
    return fits_of(
        space,
        gpus,
        device_memory(space, gpus),
        options.micro_sequences,
        recompute=options.checkpoint_activations,
    )


def gpus_here() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def _device(gpus: float) -> str:
    if not gpus:
        return cpu_name()
    import torch

    return device_name("cuda") if torch.cuda.is_available() else "a GPU"
