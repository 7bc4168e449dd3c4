"""The network between processes, measured by a small distributed job that names who is slow or silent."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from launcher.doctor.pairs import Connection, Pair, best_of, rounds
from launcher.doctor.roll import Roll

_PASSES = 2
_MOST_ROUNDS = 16
_MESSAGES = 8
_PINGS = 20
_REPEATS = 5
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
        connections: between processes, the better of two measurements.
        meeting: seconds until the last process had its process group and a first sum of all; None if they had none.
        reductions: over all that are present; empty if they could not.
        failure: why they could not.
    """

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
                return Fabric(tuple(best_of(found)))
    connections = tuple(each for each in best_of(found) if not {each.first, each.second} & roll.lost.keys())
    if not roll.tell("reduce", len(roll.present) > 1 and not _failed(connections)):
        return Fabric(connections)
    sums = roll.gather("reduced", _reduce(store, roll, device, patience), _longer(patience))
    return Fabric(connections, *_slowest(list(sums.values())))


def _talk(store: Store, pair: Pair, rank: int, device: torch.device, patience: float) -> Connection:
    """One measurement; a failure is part of it."""
    try:
        with _group(store, pair.index(rank), 2, device, patience) as deadline:
            latency, speed = _exchange(pair.index(rank) == 0, device, deadline)
    except RuntimeError as error:  # all that torch.distributed raises
        return Connection(*pair, None, None, str(error).splitlines()[0])
    return Connection(*pair, speed, latency)


@contextmanager
def _group(store: Store, rank: int, size: int, device: torch.device, patience: float) -> Iterator[float]:
    """The default process group; gives the time (monotonic) when whatever is done in it must have ended."""
    deadline = time.monotonic() + patience
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=patience),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield deadline
    except RuntimeError:
        if device.type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _exchange(is_first: bool, device: torch.device, deadline: float) -> tuple[float, float]:
    """Latency (seconds) and speed (bytes per second) one way, of both ways together."""
    few = torch.zeros(8, dtype=torch.uint8, device=device)
    many = torch.zeros(_SIZES[device.type].message, dtype=torch.uint8, device=device)
    _send_and_return(many, is_first, device, deadline)  # connects, and finds its memory
    pings = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        _send_and_return(few, is_first, device, deadline)
        pings.append((time.perf_counter() - began) / 2)
    began = time.perf_counter()
    for _ in range(_MESSAGES):
        _send_and_return(many, is_first, device, deadline)
    return statistics.median(pings), 2 * _MESSAGES * many.nbytes / (time.perf_counter() - began)


def _send_and_return(tensor: Tensor, is_first: bool, device: torch.device, deadline: float) -> None:
    other = 1 if is_first else 0
    for sends in (is_first, not is_first):
        work = dist.isend(tensor, other) if sends else dist.irecv(tensor, other)
        _finish(work, device, deadline)


def _finish(work: dist.Work | None, device: torch.device, deadline: float) -> None:
    """Wait for a message to be through.

    Raises: RuntimeError if it is not in time.
    """
    assert work is not None  # as it would be outside of the group
    if device.type == "cpu":
        work.wait(timedelta(seconds=max(0.1, deadline - time.monotonic())))
        return
    while not work.is_completed():
        if time.monotonic() > deadline:
            raise RuntimeError("no answer in time")
        time.sleep(_POLL_SECONDS)


def _reduce(store: Store, roll: Roll, device: torch.device, patience: float) -> dict[str, object]:
    """Time to meet and the all-reduces of this process, or its failure; as JSON."""
    began, size = time.perf_counter(), len(roll.present)
    sums = []
    try:
        with _group(PrefixStore("all", store), roll.present.index(roll.rank), size, device, patience) as deadline:
            _finish(dist.all_reduce(torch.zeros(1, device=device), async_op=True), device, deadline)
            meeting = time.perf_counter() - began
            for count in _SIZES[device.type].sums:
                sums.append((count, _time_all_reduce(count, device, deadline)))
    except RuntimeError as error:
        return {"failure": str(error).splitlines()[0]}
    return {"meeting": meeting, "sums": sums}


def _time_all_reduce(count: int, device: torch.device, deadline: float) -> float:
    """Seconds of one all-reduce of so many bytes, the median."""
    tensor = torch.zeros(count // 4, device=device)
    seconds = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        _finish(dist.all_reduce(tensor, async_op=True), device, deadline)
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
    """For who waits for somebody who waits for somebody else."""
    return 1.2 * patience + 2.0


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
