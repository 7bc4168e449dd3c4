"""Watchers of what a process does: bytes of live tensors at their most, calls and bytes of collectives.

They see operations as the dispatcher does, so that fake tensors and a fake process group look the same as real ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor
from torch._C._distributed_c10d import ProcessGroup
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Collective(StrEnum):
    """Ways of ranks to exchange tensors."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    SEND = "send"
    RECEIVE = "receive"


@dataclass(frozen=True)
class Traffic:
    """Exchanges of one rank.

    Attributes:
        calls: how often, by kind.
        bytes: of the tensors, by kind: of the whole for all_gather (what comes) and reduce_scatter (what is given),
            else of the rank's own tensor.
    """

    calls: Counter[Collective] = field(default_factory=Counter)
    bytes: Counter[Collective] = field(default_factory=Counter)

    def add(self, kind: Collective, size: int, calls: int = 1) -> None:
        """Count `calls` exchanges of `size` bytes each."""
        if calls:
            self.calls[kind] += calls
            self.bytes[kind] += calls * size

    def include(self, other: Traffic, times: int = 1) -> None:
        """Count all of another one's, several times."""
        for kind, calls in other.calls.items():
            self.calls[kind] += times * calls
            self.bytes[kind] += times * other.bytes[kind]


_KINDS: dict[str, tuple[Collective, int]] = {
    "allreduce_": (Collective.ALL_REDUCE, 0),
    "_allgather_base_": (Collective.ALL_GATHER, 0),
    "_reduce_scatter_base_": (Collective.REDUCE_SCATTER, 1),
    "alltoall_base_": (Collective.ALL_TO_ALL, 1),
    "send": (Collective.SEND, 0),
    "recv_": (Collective.RECEIVE, 0),
}
"""By name of the operation, its kind and which argument holds the tensors that count."""
_GROUP_FIRST = {"allreduce_", "send", "recv_"}
"""Their group is the argument behind the tensors; others have two arguments of tensors before it."""


class TrafficWatch(TorchDispatchMode):
    """Counts the collectives that start while it is entered; those of one rank alone send nothing and do not count.

    Attributes:
        traffic: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it; raises RuntimeError for a collective that has no name here."""
        if _has_parts(types):
            return NotImplemented
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            if name not in _KINDS:
                raise RuntimeError(f"a collective that is not counted: {func}")
            kind, place = _KINDS[name]
            group = ProcessGroup.unbox(args[1 if name in _GROUP_FIRST else 2])
            size = sum(tensor.numel() * tensor.element_size() for tensor in tree_leaves(args[place]))
            self.traffic.add(kind, size, int(group.size() > 1))
        return func(*args, **(kwargs or {}))


class MemoryWatch(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live; what operations use inside is not seen.

    Args:
        mode: count this mode's fake tensors; None: real ones.

    Attributes:
        peak: the most bytes that were alive after an operation.
    """

    def __init__(self, mode: FakeTensorMode | None = None) -> None:
        super().__init__()
        self._mode = mode
        self._live: Any = WeakIdKeyDictionary()
        self.peak = 0

    def add(self, tensors: Iterable[Any]) -> None:
        """Count tensors that were made before; other objects, and what is counted already, do not matter."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if isinstance(local, Tensor) and self._counts(local):
                self._live[local.untyped_storage()] = None

    @property
    def live(self) -> int:
        """Bytes that are alive now."""
        return sum(storage.nbytes() for storage in list(self._live.keys()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, take in what it made."""
        if _has_parts(types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        if self._mode is None:
            # A view of what was never seen looks at a buffer of a library's own, such as gloo's in a reduce-scatter.
            given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
            made = [tensor for tensor in made if tensor.untyped_storage()._cdata not in given]
        self.add(made)
        self.peak = max(self.peak, self.live)
        return result

    def _counts(self, tensor: Tensor) -> bool:
        """Whether it is real, or of the watched mode: libraries make fake tensors of their own to learn shapes."""
        fake = tensor.fake_mode if isinstance(tensor, FakeTensor) else None
        return tensor.device.type != "meta" and (fake is None or fake is self._mode)


def _tensors(values: Any) -> list[Tensor]:
    """All that stand somewhere in nested arguments or results."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _has_parts(types: Iterable[type]) -> bool:
    """Whether a distributed tensor is to be taken apart first; its parts come here by themselves."""
    return any(issubclass(kind, DTensor) for kind in types)


@dataclass(frozen=True)
class Observed:
    """One step of one rank.

    Attributes:
        resident: bytes of weights and optimizer state.
        peak: bytes of live tensors at their most, the former included.
        traffic: collectives.
    """

    resident: int
    peak: int
    traffic: Traffic


def observe(
    step: Callable[[], object],
    resident: Iterable[Tensor],
    mode: FakeTensorMode | None = None,
    *,
    beside: Iterable[Tensor] = (),
    steps: int = 1,
) -> Observed:
    """Watch a step, after another one that makes what later steps find, such as buffers.

    Args:
        step: what is watched.
        resident: tensors that exist already.
        mode: of fake tensors, where they are.
        beside: other tensors that exist already; those of `resident` may be among them.
        steps: watch several and take the least peak: a thread of a real process group may hold a tensor a moment
            longer than the step does.
    """
    memory = MemoryWatch(mode)
    memory.add(resident)
    before = memory.live
    memory.add(beside)
    with memory:
        step()
    watched = []
    for _ in range(steps):
        memory.peak, traffic = memory.live, TrafficWatch()
        with traffic, memory:
            step()
        watched.append(Observed(before, memory.peak, traffic.traffic))
    return min(watched, key=lambda observed: observed.peak)
