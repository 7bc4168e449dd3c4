"""The network between processes, measured by a small distributed job that names who is slow or silent."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from launcher.doctor.pairs import Connection, Pair, best_of, rounds
from launcher.doctor.roll import Roll

_PASSES = 2
_MOST_ROUNDS = 16
_SECONDS = 0.1
_BATCH = 4
_FEWEST_BATCHES, _MOST_BATCHES = 2, 50
_PINGS = 10
_REPEATS = 3
_POLL_SECONDS = 20e-6


@dataclass(frozen=True)
class Sizes:
    """Bytes of messages.

    Attributes:
        message: between two processes.
        sums: of all-reduces, the smallest first.
    """

    message: int
    sums: tuple[int, ...]


_SIZES = {
    "cpu": Sizes(4 << 20, (1 << 10, 1 << 20, 16 << 20)),
    "cuda": Sizes(64 << 20, (1 << 10, 16 << 20, 256 << 20)),
}


@dataclass(frozen=True)
class Reduction:
    """An all-reduce over all processes.

    Attributes:
        bytes: on each process.
        seconds: of one, the median.
        bandwidth: bytes per second that each process must send and receive for it, 2 (n - 1) / n of the tensor.
    """

    bytes: int
    seconds: float
    bandwidth: float


@dataclass(frozen=True)
class Fabric:
    """What was measured, known to the first process.

    Attributes:
        device: `cuda`: over nccl; `cpu`: over gloo.
        connections: between processes, the better of two measurements.
        meeting: seconds until the last process had its process group and a first sum of all; None if they had none.
        reductions: over all that are present; empty if they could not.
        failure: why they could not.
    """

    device: str
    connections: tuple[Connection, ...]
    meeting: float | None = None
    reductions: tuple[Reduction, ...] = ()
    failure: str | None = None


def measure(store: Store, roll: Roll, groups: Sequence[Sequence[int]], device: torch.device, patience: float) -> Fabric:
    """Measure two by two, then all together if all can talk; for all processes of a roll.

    Every two processes meet in a process group of their own, so that one that fails spoils no other. Who does not
    answer is noted in the roll. With nccl the measurement ends with the first failure: what hangs on a GPU stays there.

    Args:
        store: of the roll.
        roll: those that are present.
        groups: their ranks by node.
        device: of this process; decides the backend, nccl or gloo.
        patience: seconds for each connection.

    Returns: on the first process, what was measured; on the others nothing of use.
    Raises: SilenceError as :meth:`Roll.gather`.
    """
    found: list[Connection] = []
    for number in range(_PASSES):
        for turn, pairs in enumerate(rounds(groups, _MOST_ROUNDS)):
            name = f"{number}.{turn}"
            mine = next((pair for pair in pairs if roll.rank in pair), None)
            talk = None
            if mine is not None and all(rank in roll.present for rank in mine):
                talk = asdict(_talk(PrefixStore(f"pair{name}/{mine}", store), mine, roll.rank, device, patience))
            answers = roll.gather(f"round{name}", talk, _longer(patience)).values()
            found += _agreed([Connection(**answer) for answer in answers if answer is not None])
            if not roll.tell(f"go{name}", device.type == "cpu" or not _failed(found)):
                return Fabric(device.type, tuple(best_of(found)))
    connections = tuple(each for each in best_of(found) if not {each.first, each.second} & roll.lost.keys())
    if not roll.tell("reduce", len(roll.present) > 1 and not _failed(connections)):
        return Fabric(device.type, connections)
    sums = roll.gather("reduced", _reduce(store, roll, device, patience), _longer(patience))
    return Fabric(device.type, connections, *_slowest(list(sums.values())))


def _talk(store: Store, pair: Pair, rank: int, device: torch.device, patience: float) -> Connection:
    """One measurement; a failure is part of it."""
    deadline = time.monotonic() + patience
    try:
        line = _Line(_group(store, pair.index(rank), 2, device, patience), pair.index(rank), device, deadline)
        latency, speed = line.measure()
    except RuntimeError as error:  # all that torch's process groups raise
        return Connection(*pair, None, None, str(error).splitlines()[0])
    return Connection(*pair, speed, latency)


class _Group(Protocol):
    """What is used of torch's process groups, gloo's and nccl's."""

    def send(self, tensors: list[Tensor], rank: int, tag: int) -> dist.Work: ...

    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> dist.Work: ...

    def allreduce(self, tensors: list[Tensor]) -> dist.Work: ...


def _group(store: Store, rank: int, size: int, device: torch.device, patience: float) -> _Group:
    """A process group that nobody else knows: what goes wrong in it has no consequence for the next."""
    timeout = timedelta(seconds=patience)
    if device.type == "cpu":
        return cast(_Group, ProcessGroupGloo(store, rank, size, timeout))
    from torch._C._distributed_c10d import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return cast(_Group, ProcessGroupNCCL(store, rank, size, options))


class _Line:
    """The connection of two processes, seen from one of them.

    Args:
        group: of the two.
        rank: of this one in it.
        device: of the tensors.
        deadline: when all must be done (monotonic).
    """

    def __init__(self, group: _Group, rank: int, device: torch.device, deadline: float) -> None:
        self._group = group
        self._is_first = rank == 0
        self._device = device
        self._deadline = deadline

    def measure(self) -> tuple[float, float]:
        """Latency (seconds) and speed (bytes per second) one way, of both ways together."""
        few = torch.zeros(1, dtype=torch.int64, device=self._device)
        many = torch.zeros(_SIZES[self._device.type].message, dtype=torch.uint8, device=self._device)
        self._there_and_back(many)  # connects, and finds its memory
        latency = statistics.median(self._there_and_back(few) for _ in range(_PINGS)) / 2
        taken = 0.0
        for number in range(1, _MOST_BATCHES + 1):
            taken += sum(self._there_and_back(many) for _ in range(_BATCH))
            # The first one's clock decides: long enough to meet what slows a process down now and then.
            few.fill_(int(taken < _SECONDS or number < _FEWEST_BATCHES))
            self._there_and_back(few, returns=False)
            if not few.item():
                break
        return latency, 2 * number * _BATCH * many.nbytes / taken

    def _there_and_back(self, tensor: Tensor, returns: bool = True) -> float:
        """Seconds until the first process has sent it to the second one and got it back."""
        began = time.perf_counter()
        for sends in (self._is_first, not self._is_first) if returns else (self._is_first,):
            pass_on = self._group.send if sends else self._group.recv
            _finish(pass_on([tensor], 1 if self._is_first else 0, 0), self._device, self._deadline)
        return time.perf_counter() - began


def _finish(work: dist.Work, device: torch.device, deadline: float) -> None:
    """Wait for a message to be through.

    Raises: RuntimeError if it is not in time.
    """
    if device.type == "cpu":
        work.wait(timedelta(seconds=max(0.1, deadline - time.monotonic())))
        return
    while not work.is_completed():
        if time.monotonic() > deadline:
            raise RuntimeError("no answer in time")
        time.sleep(_POLL_SECONDS)


def _reduce(store: Store, roll: Roll, device: torch.device, patience: float) -> dict[str, Any]:
    """Time to meet and the all-reduces of this process, or its failure; as JSON."""
    began, deadline = time.perf_counter(), time.monotonic() + patience
    ranks = list(roll.present)
    try:
        group = _group(PrefixStore("all", store), ranks.index(roll.rank), len(ranks), device, patience)
        _time_all_reduce(group, 4, device, deadline)
        meeting = time.perf_counter() - began
        sums = [(count, _time_all_reduce(group, count, device, deadline)) for count in _SIZES[device.type].sums]
    except RuntimeError as error:
        return {"failure": str(error).splitlines()[0]}
    return {"meeting": meeting, "sums": sums}


def _time_all_reduce(group: _Group, count: int, device: torch.device, deadline: float) -> float:
    """Seconds of one all-reduce of so many bytes, the median; the first one is not counted."""
    tensor = torch.zeros(count // 4, device=device)
    seconds = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        _finish(group.allreduce([tensor]), device, deadline)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _agreed(sides: Sequence[Connection]) -> list[Connection]:
    """One connection of the accounts of its two sides: a failure if one side failed."""
    by_pair: dict[Pair, Connection] = {}
    for side in sides:
        pair = (side.first, side.second)
        if pair not in by_pair or side.failure is not None:
            by_pair[pair] = side
    return list(by_pair.values())


def _longer(patience: float) -> float:
    """For who waits for somebody who waits for somebody else: for a group, then for a message in it to be given up."""
    return 2 * patience + 2.0


def _failed(connections: Sequence[Connection]) -> bool:
    return any(each.failure is not None for each in connections)


def _slowest(answers: Sequence[dict[str, Any]]) -> tuple[float | None, tuple[Reduction, ...], str | None]:
    """Meeting, all-reduces and failure of all processes: of each the slowest."""
    if not answers:
        return None, (), None
    failure = next((answer["failure"] for answer in answers if "failure" in answer), None)
    if failure is not None:
        return None, (), failure
    share = 2 * (len(answers) - 1) / len(answers)
    reductions = []
    for timings in zip(*(answer["sums"] for answer in answers), strict=True):
        count, seconds = timings[0][0], max(taken for _, taken in timings)
        reductions.append(Reduction(count, seconds, share * count / seconds))
    return max(answer["meeting"] for answer in answers), tuple(reductions), None
