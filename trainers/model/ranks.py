"""Several ranks that train one trial together: weights, gradients and moments in shards (FSDP2), the batch in lanes.

Decides how state and work are divided over the ranks and how what they find becomes one. Who starts the ranks, and on which
devices, is the orchestrator's: here they are found in torch.distributed. A rank is one process with one device. Every rank
has to call what involves all of them, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train the trial. `mesh` is None for a process that trains alone."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = field(default=None, repr=False)

    def share(self, sequences: int) -> range:
        """The lanes of a step's `sequences` that this rank reads: the same at every step, none twice.

        Raises `ValueError` when the ranks cannot have equal shares.
        """
        if sequences % self.size:
            raise ValueError(f"ranks: {self.size} do not divide the {sequences} sequences of a step")
        count = sequences // self.size
        return range(self.rank * count, (self.rank + 1) * count)

    def total(self, value: Tensor) -> Tensor:
        """The sum of the ranks' values."""
        if self.mesh is not None:
            # The sum is made in place, and the caller may go on with its own share.
            value = value.clone()
            dist.all_reduce(value, group=self.mesh.get_group())
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the ranks' values."""
        return value if self.mesh is None else self.total(value) / self.size

    def gather(self, value: Value) -> list[Value]:
        """What each rank gave, in order of rank; also the place where all have arrived."""
        if self.mesh is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def every(self, yes: bool) -> bool:
        """Whether all ranks say yes."""
        return all(self.gather(yes))

    def first(self, yes: bool) -> bool:
        """What the first rank says: clocks and file systems may show the ranks different things."""
        return self.gather(yes)[0]


ALONE = Ranks()


def ranks_here(device: torch.device) -> Ranks:
    """The ranks that were started around this process; `ALONE` where there is no process group, or one of one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), init_device_mesh(device.type, (dist.get_world_size(),)))


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm over all gradients, float32 scalar; those of a sharded model count whole, with one sum over the ranks."""
    if not gradients or not is_sharded(gradients[0]):
        return torch.nn.utils.get_total_norm(list(gradients))
    mesh: DeviceMesh = gradients[0].device_mesh  # type: ignore[attr-defined]
    # In float64 until the root: a small shard's square has no digits left beside the others' in float32.
    square = torch.nn.utils.get_total_norm([rows_here(gradient) for gradient in gradients]).double().square()
    dist.all_reduce(square, group=mesh.get_group())
    return square.sqrt().float()


def is_sharded(tensor: Tensor) -> bool:
    """Whether ranks hold `tensor` in shards."""
    return hasattr(tensor, "to_local")


def rows_here(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, sharing its memory; any other tensor itself."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def first_row_here(tensor: Tensor) -> int:
    """Which row of the whole tensor `rows_here` begins with."""
    if not is_sharded(tensor):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = tensor
    _, offset = compute_local_shape_and_global_offset(tensor.shape, sharded.device_mesh, sharded.placements)
    return int(offset[0])


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy `whole` into `tensor`: this rank's rows of it, where ranks hold it in shards."""
    mine = rows_here(tensor)
    mine.copy_(whole[first_row_here(tensor) :][: len(mine)] if is_sharded(tensor) else whole)


def shard_like(rows: Tensor, tensor: Tensor) -> Tensor:
    """`rows` of this rank as a tensor of the kind, shape and division of `tensor`; scalars stay whole."""
    if not is_sharded(tensor) or rows.dim() == 0:
        return rows
    from torch.distributed.tensor import DTensor

    sharded: Any = tensor
    return DTensor.from_local(
        rows, sharded.device_mesh, sharded.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
