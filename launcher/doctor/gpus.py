"""GPUs by `nvidia-smi`, in processes of their own: a process that has touched CUDA can no longer be forked.

The fields are those of `nvidia-smi --help-query-gpu`, `--help-query-remapped-rows` and `--help-query-compute-apps`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.doctor.findings import Finding, Gpu, Level
from launcher.doctor.probe import Answer, Probe

_NEEDED = ("index", "uuid", "name", "driver_version", "memory.total", "memory.used", "memory.free", "temperature.gpu")
# Old and new names of the same, and what not every model has: what a driver does not know is asked no more.
_WELCOME = (
    "ecc.errors.uncorrected.volatile.total",
    "retired_pages.pending",
    "clocks_event_reasons.active",
    "clocks_throttle_reasons.active",
)
_REMAPPED = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
_PROCESSES = ("gpu_uuid", "pid", "used_memory")
_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field to query')

# Bits of nvmlClocksEventReasons: those that mean trouble with heat or power, not idling or a limit that was set.
_SLOWED = {0x08: "hardware", 0x20: "heat (by software)", 0x40: "heat", 0x80: "power brake"}
_HOT_CELSIUS = 85.0
_FOREIGN_BYTES = 2 << 30
_MIB = 1 << 20

Row = Mapping[str, str]


@dataclass(frozen=True)
class GpuReport:
    """The GPUs of a node.

    Attributes:
        gpus: that a run may use.
        driver: its version; None without one.
        findings: about the driver and about each GPU.
    """

    gpus: tuple[Gpu, ...]
    driver: str | None
    findings: tuple[Finding, ...]


class GpuExamination:
    """Begins to ask the driver when it is made.

    Args:
        device: as in `launch.device`.
        visible: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
        patience: seconds for each answer.
    """

    def __init__(self, device: str, visible: str | None, patience: float) -> None:
        self._device = device
        self._visible = visible
        self._patience = patience
        self._fields = [*_NEEDED, *_WELCOME]
        self._probe: Probe | None = None
        if device != "cpu":
            self._probe = self._ask("gpu", self._fields)
            self._remapped = self._ask("remapped-rows", _REMAPPED)
            self._processes = self._ask("compute-apps", _PROCESSES)

    def report(self) -> GpuReport:
        """Wait for the answers; call it once."""
        if self._probe is None:
            return GpuReport((), None, ())
        answer = self._main_answer(self._probe)
        remapped, processes = self._remapped.answer(), self._processes.answer()
        trouble = self._trouble(answer)
        if trouble is not None:
            return GpuReport((), None, (trouble,))
        rows = [row for row in parse_rows(answer.out, self._fields) if is_visible(row, self._visible)]
        pending = {row["gpu_uuid"]: row for row in parse_rows(remapped.out if remapped.code == 0 else "", _REMAPPED)}
        held = parse_rows(processes.out if processes.code == 0 else "", _PROCESSES)
        findings = [
            finding
            for row in rows
            for finding in judge_gpu(
                {**row, **pending.get(row["uuid"], {})}, [each for each in held if each["gpu_uuid"] == row["uuid"]]
            )
        ]
        if not rows:
            return GpuReport((), None, (self._none_visible(),))
        return GpuReport(tuple(map(_gpu, rows)), rows[0]["driver_version"], tuple(findings))

    def _ask(self, what: str, fields: Sequence[str]) -> Probe:
        command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
        return Probe(command, self._patience)

    def _main_answer(self, probe: Probe) -> Answer:
        """Asks again without a field as long as the driver names one that it does not know."""
        while True:
            answer = probe.answer()
            unknown = _UNKNOWN_FIELD.search(answer.out + answer.error)
            if unknown is None or unknown[1] not in self._fields or unknown[1] in _NEEDED:
                return answer
            self._fields.remove(unknown[1])
            probe = self._ask("gpu", self._fields)

    def _trouble(self, answer: Answer) -> Finding | None:
        """Why there are no GPUs to look at; None if there are."""
        if answer.code == 127:
            return self._no_driver()
        if answer.code is None:
            detail = f"nvidia-smi did not answer in {self._patience:.0f} s: the driver hangs"
            return Finding(Level.ERROR, "GPUs", detail, "restart the node")
        if answer.code != 0:
            said = " ".join((answer.out + answer.error).split())[:300]
            advice = "mend the driver or restart the node; launch.device=cpu does without GPUs"
            return Finding(Level.ERROR, "GPUs", f"nvidia-smi failed with code {answer.code}: {said}", advice)
        return None

    def _no_driver(self) -> Finding:
        if self._device == "cuda" or Path("/dev/nvidia0").exists():
            advice = "install NVIDIA's driver (in a container: pass its tools through), or use launch.device=cpu"
            return Finding(Level.ERROR, "GPUs", "there is no program nvidia-smi", advice)
        return Finding(Level.OK, "GPUs", "none: a run uses the CPU")

    def _none_visible(self) -> Finding:
        level = Level.ERROR if self._device == "cuda" else Level.WARNING
        detail = f"CUDA_VISIBLE_DEVICES={self._visible!r} hides all of them" if self._visible is not None else "none"
        return Finding(level, "GPUs", detail, "unset it, or ask for GPUs")


def parse_rows(text: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """Rows of `--format=csv,noheader,nounits` by field; lines of another length are no rows."""
    lines = csv.reader(io.StringIO(text), skipinitialspace=True)
    return [dict(zip(fields, map(str.strip, line), strict=True)) for line in lines if len(line) == len(fields)]


def is_visible(row: Row, visible: str | None) -> bool:
    """Whether a value of CUDA_VISIBLE_DEVICES lets a process use a GPU; None lets it use all.

    Numbers are taken in the order of the driver, as CUDA_DEVICE_ORDER=PCI_BUS_ID does; with GPUs of one model, as
    CUDA does anyway.
    """
    if visible is None:
        return True
    return any(
        name == row["index"] or (name.startswith("GPU-") and row["uuid"].startswith(name))
        for name in map(str.strip, visible.split(","))
    )


def judge_gpu(row: Row, processes: Sequence[Row]) -> list[Finding]:
    """What a driver's figures mean.

    Args:
        row: of one GPU; what the driver does not know is missing, or in brackets as it says it.
        processes: that compute on it, as far as this process may see them.
    """
    what = f"GPU {row['index']}"
    found = [*_memory_errors(row, what), *_slowness(row, what), *_neighbours(row, processes, what)]
    broken = [f"{name}: {value}" for name, value in row.items() if value in ("[Unknown Error]", "[GPU requires reset]")]
    if broken:
        advice = "reset it (nvidia-smi -r) or restart the node"
        found.append(Finding(Level.ERROR, what, f"the driver cannot read {', '.join(broken)}", advice))
    return found or [Finding(Level.OK, what, _described(row))]


def _memory_errors(row: Row, what: str) -> list[Finding]:
    found = []
    errors = _number(row.get("ecc.errors.uncorrected.volatile.total"))
    if errors:
        detail = f"{errors:.0f} uncorrectable memory errors since the driver was loaded"
        found.append(Finding(Level.ERROR, what, detail, "reset it (nvidia-smi -r); if they come back, replace it"))
    if _is_yes(row.get("remapped_rows.failure")):
        found.append(Finding(Level.ERROR, what, "a broken memory row could not be replaced", "replace the GPU"))
    if _is_yes(row.get("remapped_rows.pending")) or _is_yes(row.get("retired_pages.pending")):
        detail = "broken memory that a reset would take out of use"
        found.append(Finding(Level.ERROR, what, detail, "reset it (nvidia-smi -r) or restart the node"))
    return found


def _slowness(row: Row, what: str) -> list[Finding]:
    text = row.get("clocks_event_reasons.active") or row.get("clocks_throttle_reasons.active") or ""
    bits = int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", text) else 0
    reasons = [name for bit, name in _SLOWED.items() if bits & bit]
    celsius = _number(row.get("temperature.gpu"))
    found = []
    if reasons:
        found.append(Finding(Level.WARNING, what, f"slowed down by {', '.join(reasons)}", "look at cooling and power"))
    if celsius is not None and celsius >= _HOT_CELSIUS:
        found.append(Finding(Level.WARNING, what, f"{celsius:.0f} degrees Celsius", "look at its cooling"))
    return found


def _neighbours(row: Row, processes: Sequence[Row], what: str) -> list[Finding]:
    """Others who hold its memory: by name where they can be seen, else by what is missing."""
    used = _number(row["memory.used"])
    if not processes and (used is None or used * _MIB < _FOREIGN_BYTES):
        return []
    names = ", ".join(f"process {each['pid']} ({each['used_memory']} MiB)" for each in processes)
    detail = f"{row['memory.used']} of {row['memory.total']} MiB in use" + (f" by {names}" if names else "")
    return [Finding(Level.WARNING, what, detail, "end what computes there, or leave the GPU out")]


def _gpu(row: Row) -> Gpu:
    total, free = _number(row["memory.total"]), _number(row["memory.free"])
    return Gpu(int(row["index"]), row["uuid"], row["name"], _bytes(total), _bytes(free))


def _described(row: Row) -> str:
    return f"{row['name']}, {row['memory.free']} of {row['memory.total']} MiB free, {row['temperature.gpu']} degrees"


def _is_yes(text: str | None) -> bool:
    """Drivers say it in words or in counts."""
    return text is not None and (text.lower() == "yes" or (_number(text) or 0) > 0)


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"\d+(\.\d+)?", text) else None


def _bytes(mebibytes: float | None) -> int | None:
    return None if mebibytes is None else int(mebibytes * _MIB)
