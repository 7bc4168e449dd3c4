"""Rows of figures: how they are made from steps, and the files they go to."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any, Protocol

import torch

from ptm_dist.checkpoint.files import write_atomically
from ptm_dist.errors import DiskFullError, RunDirectoryError, is_disk_full
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.training.machine import Machine
from ptm_dist.training.trainer import StepRecord

Row = dict[str, Any]


class Sink(Protocol):
    """Where rows go; on the first rank only."""

    def write(self, row: Row) -> None:
        """Take one row; it has `kind` (run, train or validation) and `step`."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Interval:
    """The steps since the last row of kind `train`, and the row they make.

    Args:
        machine: for throughput and utilisation.
        control: all ranks; times and memory are those of the slowest and fullest one.
    """

    def __init__(self, machine: Machine, control: ControlGroup) -> None:
        self._machine = machine
        self._control = control
        self._records: list[StepRecord] = []
        self.checkpoint_seconds = 0.0

    def add(self, record: StepRecord) -> None:
        """Take in one step."""
        self._records.append(record)

    def take_row(self) -> Row | None:
        """The row of all steps since the last one, or None if there were none; collective.

        Mean over its steps: loss and its parts, accuracies, grad_norm (of the steps where they are numbers),
        step_seconds. Sum: data_wait_seconds, checkpoint_seconds, and `skipped`, the steps without an update. As of
        its last step: step, samples, tokens, learning_rate. `losses` has every step's, exact to the bit.
        Throughput counts the time of steps and waiting for data, not validation and checkpoints.
        """
        records = self._records
        if not records:
            return None
        seconds, waited, memory = self._control.maxima(
            sum(record.seconds for record in records),
            sum(record.data_wait_seconds for record in records),
            float(peak_memory(self._machine.device)),
        )
        last, count = records[-1], len(records)
        results = [record.result for record in records if record.result.is_finite]
        row = {
            "kind": "train",
            "step": last.step,
            "samples": last.samples,
            "tokens": last.tokens,
            "loss": _mean([result.loss for result in results]),
            **{name: _mean([r.metrics[name] for r in results]) for name in (results[-1].metrics if results else ())},
            "losses": [record.result.loss for record in records],
            "grad_norm": _mean([result.grad_norm for result in results]),
            "skipped": sum(not record.result.is_applied for record in records),
            "learning_rate": last.learning_rate,
            "step_seconds": seconds / count,
            **self._speed(records, seconds),
            "peak_memory_bytes": int(memory),
            "data_wait_seconds": waited,
            "checkpoint_seconds": self.checkpoint_seconds,
        }
        self._records, self.checkpoint_seconds = [], 0.0
        return row

    def _speed(self, records: list[StepRecord], seconds: float) -> Row:
        machine = self._machine
        full = causal = 0
        records = [record for record in records if record.result.targets]  # others were passed over
        for record in records:
            flops = machine.flops_per_token(record.sequence_length)
            full += flops.full * record.batch_tokens
            causal += flops.causal * record.batch_tokens
        speed = sum(record.batch_tokens for record in records) / seconds
        return {
            "tokens_per_second": speed,
            "tokens_per_second_per_device": speed / machine.devices,
            "mfu_full": full / seconds / machine.peak_flops,
            "mfu_causal": causal / seconds / machine.peak_flops,
        }


class JsonLines:
    """Appends rows to ``metrics.jsonl``, each on disk when :meth:`write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append one line; floats are written so that they read back equal to the bit, and no number as null."""
        try:
            self._stream.write(json.dumps({key: _json(value) for key, value in row.items()}) + "\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorBoard:
    """Event files with every number of the rows.

    Args:
        directory: of the event files.
        start_step: the run goes on from here; what other runs wrote beyond it is hidden.
    """

    def __init__(self, directory: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=start_step + 1)

    def write(self, row: Row) -> None:
        """One scalar per number, named `kind/key`."""
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl`` or ``events.jsonl``, without lines that a kill left half written."""
    if not path.exists():
        return []
    rows = (_parsed(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [row for row in rows if row is not None]


def drop_rows_after(path: Path, step: int) -> None:
    """Move the rows of steps that a resumed run will compute again to :func:`lost_rows_path`, all or none of them."""
    rows, lost = read_rows(path), lost_rows_path(path)
    kept = [json.dumps(row) for row in rows if row["step"] <= step]
    dropped = [json.dumps(row) for row in rows if row["step"] > step]
    try:
        if dropped:
            # Without doubles: a kill before the next line leaves the same rows to be moved once more.
            lines = dict.fromkeys([*(json.dumps(row) for row in read_rows(lost)), *dropped])
            write_atomically(lost, "".join(f"{line}\n" for line in lines))
        write_atomically(path, "".join(f"{line}\n" for line in kept))
    except OSError as error:
        raise _cannot_write(path, error) from error


def lost_rows_path(path: Path) -> Path:
    """Beside ``metrics.jsonl`` the file with the rows of thrown away work, ``metrics.lost.jsonl``."""
    return path.with_stem(f"{path.stem}.lost")


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: allocated tensors on CUDA, resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cannot_write(path: Path, error: OSError) -> RunDirectoryError:
    kind = DiskFullError if is_disk_full(error) else RunDirectoryError
    return kind(f"cannot write {path}: {error.strerror}")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _json(value: Any) -> Any:
    """JSON knows no infinity and no NaN."""
    if isinstance(value, list):
        return [_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
