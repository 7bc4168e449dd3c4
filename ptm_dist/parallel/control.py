"""What ranks tell each other beside tensors of the step: objects, flags, and whether all went well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from data_pipeline.errors import UserError

T = TypeVar("T")


class PeerError(ConnectionError):
    """This rank is fine; another one failed: collateral, as a lost connection is."""


@dataclass(frozen=True)
class ControlGroup:
    """All ranks of a run, over CPU sockets; `group` is None for a process that is alone."""

    group: dist.ProcessGroup | None
    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes what is written once."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on all ranks; any object that can be pickled."""
        if self.group is None:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]

    def to_first(self, value: T) -> list[T]:
        """The values of all ranks on the first one; on the others an empty list."""
        if self.group is None:
            return [value]
        values: list[T | None] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values or []  # type: ignore[return-value]

    def each_from_first(self, action: Callable[[], list[T]]) -> T:
        """This rank's of the values, one for each, that `action` returns on the first rank; errors reach all."""
        values = self.together(lambda: action() if self.is_first else [])
        if self.group is None:
            return values[0]
        own: list[T | None] = [None]
        dist.scatter_object_list(own, values if self.is_first else None, src=0, group=self.group)
        return own[0]  # type: ignore[return-value]

    def maxima(self, *values: float) -> list[float]:
        """The largest of each value over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def sums(self, *values: float) -> list[float]:
        """The sum of each value over all ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; if it raises on one, all raise, and nobody waits for ever.

        Raises:
            Exception: what this rank's own action raised.
            UserError: the mistake that the lowest failing rank met, the same on the ranks that met none.
            PeerError: naming the rank and its error, where another rank failed for any other reason.
        """
        result, own = None, None
        try:
            result = action()
        except Exception as error:
            own = error
        failures = self.gather(_described(own))
        if own is not None:
            raise own
        for rank, failure in enumerate(failures):
            if isinstance(failure, UserError):
                raise failure
            if failure is not None:
                raise PeerError(f"rank {rank} failed: {failure}")
        return result  # type: ignore[return-value]

    def from_first(self, action: Callable[[], T]) -> T:
        """What `action` returns on the first rank, which alone runs it; errors reach every rank."""
        return self.gather(self.together(lambda: action() if self.is_first else None))[0]  # type: ignore[return-value]

    def _reduce(self, values: tuple[float, ...], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor.tolist()


ALONE = ControlGroup(None, 0, 1)


def control_group() -> ControlGroup:
    """A group of its own for control messages over all ranks of the default process group; collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    return ControlGroup(dist.new_group(backend="gloo"), dist.get_rank(), dist.get_world_size())


def _described(error: Exception | None) -> UserError | str | None:
    if error is None or isinstance(error, UserError):
        return error
    return f"{type(error).__name__}: {error}"
