"""Why a run failed: each rank writes down its own error, the parent finds the one that came first."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from ptm_dist.errors import DiskFullError, is_disk_full

# What gloo, NCCL and TCPStore say when the other end is gone; they raise plain RuntimeErrors with these texts.
_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "third_party/gloo",
    "gloo connect",
    "wait timeout after",
    "socket timeout",
    "nccl communicator was aborted",
    "remote process exited",
)
_TRACEBACK_LINES = 12


class Kind(StrEnum):
    """What a failure says about its own cause."""

    USER = "user"
    """A mistake that the message explains."""
    PASSING = "passing"
    """Something outside the run that may pass, such as a full disk; the message explains it too."""
    ERROR = "error"
    """Anything else that went wrong in this rank itself."""
    COLLATERAL = "collateral"
    """The rank lost the connection to another one, which failed before it."""


@dataclass(frozen=True)
class Failure:
    """The end of one rank.

    Attributes:
        rank: who failed.
        time: when, in seconds since the epoch.
        kind: whether the cause lies in this rank.
        message: one line, or a user error's own text.
        traceback: Python's, empty for user errors and for ranks that died without a word.
        node: on which the rank was, if anybody said.
        place: what it was at, in words, if it said.
    """

    rank: int
    time: float
    kind: Kind
    message: str
    traceback: str = ""
    node: str = ""
    place: str = ""

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        """What `error`, just caught in rank `rank`, says."""
        if isinstance(error, UserError):
            return cls(rank, time.time(), Kind.PASSING if is_passing(error) else Kind.USER, str(error))
        kind = Kind.PASSING if is_passing(error) else Kind.COLLATERAL if is_collateral(error) else Kind.ERROR
        message = "".join(traceback.format_exception_only(error)).strip()
        return cls(rank, time.time(), kind, message, "".join(traceback.format_exception(error)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Failure:
        """What :meth:`as_json` made."""
        return cls(**{**values, "kind": Kind(values["kind"])})

    @property
    def is_explained(self) -> bool:
        """Whether the message says all that a user needs."""
        return self.kind in (Kind.USER, Kind.PASSING)

    def headline(self) -> str:
        """Who, where, what: one line, but for a message of several."""
        name = f"rank {self.rank}"
        where = f" on {self.node}" if self.node else ""
        place = f" ({self.place})" if self.place else ""
        said = self.message.removeprefix(name).lstrip(": ") if self.message.startswith(name) else self.message
        return f"{name}{where}{place}: {said}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Exit:
    """How a worker process ended, when it did so by itself and not well.

    Attributes:
        rank: which one.
        code: its exit code; negative is the number of the signal that killed it.
        time: when this was seen, in seconds since the epoch.
    """

    rank: int
    code: int
    time: float

    def failure(self) -> Failure:
        """All that is known if the rank wrote nothing itself."""
        what = f"exited with code {self.code}"
        if self.code < 0:
            name = signal.Signals(-self.code).name
            what = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return Failure(self.rank, self.time, Kind.ERROR, f"rank {self.rank} {what}")


def is_collateral(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, only tells that another rank is gone."""
    import torch.distributed as dist

    if isinstance(error, (dist.DistError, ConnectionError)):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _LOST_PEER):
        return True
    return error.__cause__ is not None and is_collateral(error.__cause__)


def is_passing(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, tells of something that may pass: a full disk."""
    if isinstance(error, DiskFullError) or is_disk_full(error):
        return True
    return error.__cause__ is not None and is_passing(error.__cause__)


def failure_path(logs: Path, rank: int) -> Path:
    """Where a rank writes its failure."""
    return logs / f"failure_rank{rank}.json"


def write_failure(logs: Path, failure: Failure) -> None:
    """Write a failure whole or not at all."""
    path = failure_path(logs, failure.rank)
    unfinished = path.with_suffix(f".tmp-{os.getpid()}")
    unfinished.write_text(json.dumps(failure.as_json()), encoding="utf-8")
    unfinished.replace(path)


def read_failure(logs: Path, rank: int) -> Failure | None:
    """What a rank wrote, or None if it wrote nothing."""
    try:
        fields = json.loads(failure_path(logs, rank).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Failure.from_json(fields)


def remove_failures(logs: Path) -> None:
    """Forget what an earlier start wrote."""
    for path in logs.glob("failure_rank*"):  # those that a full disk cut short as well
        path.unlink(missing_ok=True)


def first_cause(logs: Path, exits: Sequence[Exit]) -> Failure:
    """Why a group of ranks failed: the earliest failure that is not collateral; if all are, the earliest.

    Args:
        logs: where ranks wrote their failures.
        exits: of the ranks that ended by themselves and not well; at least one.
    """
    failures = [read_failure(logs, exit.rank) or exit.failure() for exit in exits]
    causes = [failure for failure in failures if failure.kind is not Kind.COLLATERAL]
    return min(causes or failures, key=lambda failure: failure.time)


def describe(failure: Failure, logs: Path) -> str:
    """A failure for people: who, what, the end of the traceback, and where the rest is."""
    if failure.is_explained:
        return failure.message
    headline = failure.headline()
    if failure.kind is Kind.COLLATERAL:
        headline += "\nno rank wrote another cause: the network or a machine may have failed"
    said = failure.traceback.strip().removesuffix(failure.message).splitlines()
    lines = [line for line in said if line.strip(" ^~")][-_TRACEBACK_LINES:]
    log = logs / f"rank_{failure.rank}.log"
    return "\n".join([headline, *(f"  {line}" for line in lines), f"full log: {log}"])
