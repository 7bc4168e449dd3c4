"""``python -m benchmarks.page``: the tables of docs/performance.md from the files under benchmarks/results/."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
GOALS = {
    "gpt3-1.3b": ("GPT-3 1.3B at 2,048", "55%, better 60%"),
    "gpt2-355m": ("GPT-2 355M at 1,024", "50%"),
    "gpt2-124m": ("GPT-2 124M at 1,024", "45%"),
    "bert-large-512": ("BERT-large at 512", "50%"),
    "bert-large-128": ("BERT-large at 128", "45%"),
}


def main() -> None:
    """Write the page anew, its text left as it is."""
    PAGE.write_text(filled(PAGE.read_text(), _RESULTS))
    print(PAGE)


def filled(page: str, results: Path) -> str:
    """A page with tables of what was measured between its marks."""
    makers = {
        "cpu": cpu_tables,
        "cpu kernels": partial(kernel_table, device="cpu"),
        "gpu goals": goal_rows,
        "gpu": gpu_tables,
        "gpu kernels": partial(kernel_table, device="cuda"),
    }

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{makers[match[2]](results)}<!-- end -->"

    return re.sub(r"(<!-- tables of ([a-z ]+) -->)\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def cpu_tables(results: Path) -> str:
    """Of `make bench`, a table for each problem."""
    found = _read(results / "cpu.json")
    if found is None:
        return "Not yet measured.\n"
    return f"{_where(found)}\n\n" + "\n".join(map(_comparison, found.get("steps", ())))


def _comparison(result: Mapping[str, Any]) -> str:
    world, threads = result["processes"], result["threads_each"]
    lines = [
        f"**{result['problem']}**, {world} process{'es' if world > 1 else ''} of {threads} thread"
        f"{'s' if threads > 1 else ''}\n",
        "| | tokens/s | peak memory | beside | as fast | the memory |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for name, row in result["candidates"].items():
        if "error" in row:
            lines.append(f"| {name} | did not run: {_cell(row['error'])} | | | | |")
            continue
        speed, memory = f"{row['tokens_per_second']:,.0f}", f"{row['peak_mib']:,.0f} MiB"
        ratios = "| | | |"
        if "beside" in row:
            faster, larger = row["ours_is_times_as_fast"], row["ours_takes_times_the_memory"]
            ratios = f"| {row['beside']} is | {faster:.2f}x | {larger:.2f}x |"
        lines.append(f"| {name} | {speed} | {memory} {ratios}")
    difference, tolerance = result["largest_loss_difference"], result["loss_tolerance"]
    return "\n".join(lines) + f"\n\nLosses differ by {difference:.1e} at most; {tolerance:g} is allowed.\n"


def kernel_table(results: Path, device: str) -> str:
    """Of `python -m benchmarks.kernels`: time and accuracy of each form of each kernel, and of what others have."""
    found = _read(results / f"kernels-{device}.json")
    if found is None:
        return "Not yet measured.\n"
    lines = [
        f"{_where(found)} A copy moves {found['copy_bytes_per_second'] / 1e9:,.0f} GB/s.\n",
        "| Forward and backward | | ms | of the copy's bandwidth | largest error |",
        "|---|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        what = f"{row['operation']}, {row['dtype']}, {row['rows']:,} x {row['width']:,}"
        shares, errors = row["share_of_copy_bandwidth"], row["relative_errors"]
        for name, seconds in {**row["seconds"], **row["peers"]}.items():
            whose = f"ptm-dist {name}" if name in row["seconds"] else name
            error = f"{errors[name]:.1e}" if name in row["seconds"] else ""
            lines.append(f"| {what} | {whose} | {seconds * 1e3:,.2f} | {shares[name]:.0%} | {error} |")
            what = ""
    return "\n".join(lines) + "\n"


def goal_rows(results: Path) -> str:
    """Of each goal, and the best that was measured."""
    lines = ["| Model | Goal, MFU | Measured |", "|---|---|---|"]
    for name, (model, goal) in GOALS.items():
        found = _read(results / f"gpu-{name}.json")
        ours = [row["mfu_full"] for key, row in _ran(found).items() if key.startswith("ptm-dist")]
        lines.append(f"| {model} | {goal} | {f'{max(ours):.1%}' if ours else 'not yet measured'} |")
    return "\n".join(lines) + "\n"


def gpu_tables(results: Path) -> str:
    """Of `make gpu-bench`, whole steps."""
    tables = [_steps(found) for name in GOALS if (found := _read(results / f"gpu-{name}.json")) is not None]
    return "\n".join(tables) if tables else "Not yet measured.\n"


def _steps(found: Mapping[str, Any]) -> str:
    lines = [
        f"**{found['problem']}**, micro-batches of {found['micro_batch']}. {_where(found)}\n",
        "| | tokens/s | MFU | MFU, causal | peak memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in found["candidates"].items():
        if "error" in row:
            lines.append(f"| {name} | did not run: {_cell(row['error'])} | | | |")
            continue
        shares = f"{row['mfu_full']:.1%} | {row['mfu_causal']:.1%}"
        lines.append(f"| {name} | {row['tokens_per_second']:,.0f} | {shares} | {row['peak_memory_gib']:.1f} GiB |")
    return "\n".join(lines) + "\n"


def _where(found: Mapping[str, Any]) -> str:
    device = found["device"] if found["device"] != "cpu" else f"{found['threads']} threads of {found['machine']}"
    return f"{found['date']}, {device}, torch {found['torch']}, Python {found['python']}."


def _ran(found: Mapping[str, Any] | None) -> dict[str, Any]:
    rows = found["candidates"] if found else {}
    return {name: row for name, row in rows.items() if "error" not in row}


def _cell(text: str) -> str:
    """The first line of an error, as a table can hold it."""
    return text.strip().splitlines()[0].replace("|", "/")[:160]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main()
