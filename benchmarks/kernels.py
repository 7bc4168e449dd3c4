"""``python -m benchmarks.kernels``: every form of every kernel beside what others have, on this machine's device.

With ``--adopt`` the fastest forms become what kernels: auto chooses here, by ptm_dist/kernels/measured.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernel_subjects import Call, Draw, Subject, subject_of
from benchmarks.timing import save
from ptm_dist.kernels import choice
from ptm_dist.kernels.choice import device_name

_MEASURED = Path(choice.__file__).with_name("measured.json")
ON_CPU = {
    "add_norm": [(4096, 256), (512, 768)],
    "bias_gelu": [(4096, 1024), (512, 3072)],
    "embedding": [(4096, 256), (512, 768)],
    "cross_entropy": [(1024, 4096)],
    "linear_cross_entropy": [(256, 256)],
    "optimizer": [(4096, 1024)],
}
ON_CUDA = {
    "add_norm": [(65536, 768), (32768, 1024), (16384, 2048)],
    "bias_gelu": [(65536, 3072), (32768, 4096), (16384, 8192)],
    "embedding": [(65536, 768), (32768, 1024), (16384, 2048)],
    "cross_entropy": [(8192, 50304), (8192, 30592)],
    "linear_cross_entropy": [(32768, 768), (16384, 2048)],
    "optimizer": [(65536, 2048)],
}
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_REPEATS = 7
_LEAST_SECONDS = 0.02


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=sorted(ON_CPU), nargs="+", default=sorted(ON_CPU))
    parser.add_argument("--dtypes", choices=sorted(_DTYPES), nargs="+", default=sorted(_DTYPES))
    parser.add_argument("--adopt", action="store_true", help="write the winners to measured.json")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    bandwidth = copy_bandwidth(device)
    print(f"copy: {bandwidth / 1e9:,.0f} GB/s, read and write")
    rows = []
    for name in asked.only:
        for rows_and_width in (ON_CUDA if device.type == "cuda" else ON_CPU)[name]:
            for dtype in asked.dtypes:
                if name == "optimizer" and dtype != "fp32":
                    continue  # what is updated is float32 in every run
                draw = Draw(_DTYPES[dtype], device)
                subject = subject_of(name, *rows_and_width, draw)
                measured = measure(subject, bandwidth, device)
                rows.append({**measured, "relative_errors": relative_errors(subject, draw)})
                print(text(rows[-1]), flush=True)
    print(f"figures: {save(f'kernels-{device.type}', {'copy_bytes_per_second': bandwidth, 'rows': rows})}")
    if asked.adopt:
        adopt(rows)
        print(f"winners: {_MEASURED}")


def measure(subject: Subject, bandwidth: float, device: torch.device) -> dict[str, Any]:
    """Seconds of each form and each peer, forward and backward; what fails has its error in place of them."""
    seconds, errors = _timed({form.value: make for form, make in subject.calls.items()}, device)
    peers, more = _timed(subject.peers, device)
    return {
        "device": device_name(device),
        "operation": subject.name,
        "is_chosen_by_this": subject.operation is not None,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "width": subject.width,
        "rows": subject.rows,
        "seconds": seconds,
        "peers": peers,
        "errors": {**errors, **more},
        "share_of_copy_bandwidth": {
            name: subject.least_bytes / each / bandwidth for name, each in {**seconds, **peers}.items()
        },
        "versions": {"torch": torch.__version__, "triton": _version("triton")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def relative_errors(subject: Subject, draw: Draw) -> dict[str, float]:
    """How far results of each form of ours, gradients included, are from those of the first form in float64.

    Of each tensor the largest difference, in units of its largest number; of these the largest. Forms that fail here
    have their error among the times.
    """
    exact = _results(subject, replace(draw, is_exact=True), next(iter(subject.calls)))
    errors = {}
    for form in subject.calls:
        with suppress(Exception):
            pairs = zip(_results(subject, draw, form), exact, strict=True)
            errors[form.value] = max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    return errors


def _results(subject: Subject, draw: Draw, form: choice.Form) -> Sequence[torch.Tensor]:
    """Of a form of the same problem, with inputs that nobody has changed."""
    fresh = subject_of(subject.name, subject.rows, subject.width, draw)
    found: Sequence[torch.Tensor] = fresh.calls[form]()()
    return found


def _timed(makers: Mapping[str, Callable[[], Call]], device: torch.device) -> tuple[dict[str, float], dict[str, str]]:
    """Candidates take turns, so that all see the same clocks."""
    calls: dict[str, tuple[Call, int]] = {}
    errors: dict[str, str] = {}
    for name, make in makers.items():
        try:
            call = make()
            for _ in range(3):
                call()
            once = _seconds(call, 1, device)
            calls[name] = call, max(1, round(_LEAST_SECONDS / once))
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_REPEATS):
        for name, (call, count) in calls.items():
            times[name].append(_seconds(call, count, device))
    return {name: statistics.median(found) for name, found in times.items()}, errors


def _seconds(call: Call, count: int, device: torch.device) -> float:
    """Of one call, the mean over several in a row."""
    _synchronise(device)
    begin = time.perf_counter()
    for _ in range(count):
        call()
    _synchronise(device)
    return (time.perf_counter() - begin) / count


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written ones together, of the fastest of some copies of what no cache holds."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return max(2 * size / _seconds(lambda: target.copy_(source), 5, device) for _ in range(5))


def adopt(rows: list[dict[str, Any]]) -> None:
    """Put rows into measured.json in place of those of the same device, operation, type and width."""
    kept = json.loads(_MEASURED.read_text()) if _MEASURED.exists() else []
    keys = ("device", "operation", "dtype", "width", "rows", "seconds", "versions", "date")
    fresh = [{key: row[key] for key in keys} for row in rows if row["is_chosen_by_this"] and row["seconds"]]

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in keys[:4])

    replaced = {place(row) for row in fresh}
    found = sorted([row for row in kept if place(row) not in replaced] + fresh, key=place)
    _MEASURED.write_text(json.dumps(found, indent=1) + "\n")


def text(row: Mapping[str, Any]) -> str:
    """A line for each candidate."""
    errors = [f"{name} {error:.1e}" for name, error in row["relative_errors"].items()]
    lines = [f"{row['operation']} {row['dtype']} {row['rows']} x {row['width']}, forward and backward"]
    times = {**{f"ptm-dist {name}": each for name, each in row["seconds"].items()}, **row["peers"]}
    shares = list(row["share_of_copy_bandwidth"].values())
    for (name, each), share in zip(times.items(), shares, strict=True):
        lines.append(f"  {name:30s} {each * 1e3:9.3f} ms   {share:6.1%} of the bandwidth of a copy")
    lines += [f"  {name:30s} {error}" for name, error in row["errors"].items()]
    lines.append(f"  largest error, beside float64: {', '.join(errors)}")
    return "\n".join(lines)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    main()
