"""The parity table: which cells there are, their measurement, and docs/layouts.md made from it.

``python -m tests.parity.table`` measures every cell and writes the page.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from tests.distributed import run_distributed
from tests.parity.cells import Cell, Errors, Problem, reference_name, reference_trace, run_cells

Measured = tuple[str, Cell, Errors]

LAYOUTS: dict[str, tuple[int, dict[str, object]]] = {
    "one process": (1, {}),
    "DP 2": (2, {}),
    "DP 4": (4, {}),
    "ZeRO-1 x2": (2, {"zero_stage": 1}),
    "ZeRO-2 x2": (2, {"zero_stage": 2}),
    "ZeRO-3 x2": (2, {"zero_stage": 3}),
    "HSDP 2x2 (ZeRO-3)": (4, {"zero_stage": 3, "data_parallel_replicate": 2}),
    "TP 2": (2, {"tensor_parallel": 2}),
    "TP 2 + SP": (2, {"tensor_parallel": 2, "sequence_parallel": True}),
    "TP 4": (4, {"tensor_parallel": 4}),
    "ZeRO-3 x2, TP 2": (4, {"tensor_parallel": 2, "zero_stage": 3}),
}
EXTRA_LAYOUTS: dict[str, tuple[int, dict[str, object]]] = {
    "DP 3": (3, {}),
    "ZeRO-1 x3": (3, {"zero_stage": 1}),
    "ZeRO-3 x3": (3, {"zero_stage": 3}),
    "TP 4 + SP": (4, {"tensor_parallel": 4, "sequence_parallel": True}),
    "DP 2, TP 2 + SP": (4, {"tensor_parallel": 2, "sequence_parallel": True}),
    "ZeRO-1 x2, TP 2 + SP": (4, {"tensor_parallel": 2, "sequence_parallel": True, "zero_stage": 1}),
    "ZeRO-2 x2, TP 2 + SP": (4, {"tensor_parallel": 2, "sequence_parallel": True, "zero_stage": 2}),
    "ZeRO-3 x2, TP 2 + SP": (4, {"tensor_parallel": 2, "sequence_parallel": True, "zero_stage": 3}),
    "HSDP 2x2 (ZeRO-1)": (4, {"zero_stage": 1, "data_parallel_replicate": 2}),
    "HSDP 2x2 (ZeRO-2)": (4, {"zero_stage": 2, "data_parallel_replicate": 2}),
}
ACCUMULATIONS = (1, 3)
RECOMPUTES = ("none", "full")
ENCODERS = ("bert", "roberta", "albert")
FAMILIES = {
    **{family: Problem(family) for family in ("gpt1", "gpt3", *ENCODERS)},
    "gpt3, documents apart": Problem("gpt3", documents=True),
}
PROBLEMS = [Problem(tied=tied, vocab_size=vocab) for tied in (True, False) for vocab in (96, 101)]
FP64_TOLERANCE = 1e-12
"""A mistake shows at 1e-3, rounding of another order of sums at 1e-14."""
FP32_TOLERANCE = 1e-5
"""Ten steps of Adam on float32 rounding noise."""
CELLS_OF_A_WORLD = 24
"""Cells that one group of processes runs: each leaves process groups behind, and each of those holds threads."""


def matrix() -> list[tuple[str, Cell]]:
    """Every layout with every problem, accumulation and recompute, in float64."""
    return [
        (name, Cell(problem, world, {**layout, "recompute": recompute}, accumulation))
        for (name, (world, layout)), problem, accumulation, recompute in itertools.product(
            LAYOUTS.items(), PROBLEMS, ACCUMULATIONS, RECOMPUTES
        )
    ]


def extras() -> list[tuple[str, Cell]]:
    """Further products and uneven slices (10 samples on 3 or 4 ranks), on the hardest problem."""
    problem = Problem(tied=True, vocab_size=101, global_batch=10)
    return [
        (name, Cell(problem, world, {**layout, "recompute": "full"}, 3))
        for name, (world, layout) in EXTRA_LAYOUTS.items()
    ]


def other_families(*, complete: bool) -> list[tuple[str, Cell]]:
    """The other families: tied with recompute, accumulation and uneven slices on the first layouts.

    The complete set has all layouts, and beside them plain steps and untied heads.
    """
    layouts = {**LAYOUTS, **EXTRA_LAYOUTS} if complete else LAYOUTS
    settings = [(replace(problem, global_batch=10), "full", 3) for problem in FAMILIES.values()]
    if complete:
        settings += [(problem, "none", 1) for problem in FAMILIES.values()]
        settings += [(replace(problem, tied=False, vocab_size=96), "none", 2) for problem in FAMILIES.values()]
    return [
        (name, Cell(problem, world, {**layout, "recompute": recompute}, accumulation))
        for problem, recompute, accumulation in settings
        for name, (world, layout) in layouts.items()
    ]


def single_precision() -> list[tuple[str, Cell]]:
    """Each layout once in float32."""
    problem = Problem(precision="fp32")
    return [(name, Cell(problem, world, layout, 3)) for name, (world, layout) in {**LAYOUTS, **EXTRA_LAYOUTS}.items()]


def measure(named_cells: Iterable[tuple[str, Cell]], device: str = "cpu") -> list[Measured]:
    """Run cells, those of one world size a few at a time in one group of processes."""
    backend = "nccl" if device == "cuda" else "gloo"
    by_world: dict[int, list[tuple[str, Cell]]] = defaultdict(list)
    for name, cell in named_cells:
        by_world[cell.world_size].append((name, cell))
    measured = []
    with tempfile.TemporaryDirectory() as references:
        for problem in {cell.problem for cells in by_world.values() for _, cell in cells}:
            torch.save(reference_trace(problem), Path(references) / reference_name(problem))
        for world, all_cells in by_world.items():
            for first in range(0, len(all_cells), CELLS_OF_A_WORLD):
                cells = all_cells[first : first + CELLS_OF_A_WORLD]
                arguments = ([cell for _, cell in cells], references, device)
                rows = run_distributed(run_cells, world, *arguments, timeout=1500, backend=backend)[0]
                measured += [(name, cell, Errors(**row)) for (name, cell), row in zip(cells, rows, strict=True)]
    return measured


def page(double: list[Measured], single: list[Measured], families: list[Measured]) -> str:
    """The Markdown of docs/layouts.md."""
    template = Path(__file__).with_name("layouts.template.md").read_text()
    template = template.replace("@TABLE@", _gpt2_table(double, single)).replace("@FAMILIES@", _family_table(families))
    return template.replace("@TORCH@", torch.__version__)


def _gpt2_table(double: list[Measured], single: list[Measured]) -> str:
    single_by_name = {name: errors for name, _, errors in single}
    lines = [
        "| layout | cells | loss | norm | gradients | weights | validation | fp32 gradients | fp32 weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in {name: None for name, _, _ in double}:
        group = [errors for other, _, errors in double if other == name]
        worst = [
            max(getattr(errors, part) for errors in group)
            for part in ("loss", "norm", "gradient", "weight", "validation")
        ]
        fp32 = single_by_name[name]
        figures = " | ".join(f"{value:.0e}" for value in (*worst, fp32.gradient, fp32.weight))
        lines.append(f"| {name} | {len(group)} | {figures} |")
    return "\n".join(lines)


def _family_table(measured: list[Measured]) -> str:
    """Worst error of all parts, by layout and family."""
    lines = [f"| layout | {' | '.join(FAMILIES)} |", "|---" * (1 + len(FAMILIES)) + "|"]
    for name in {name: None for name, _, _ in measured}:
        worst = [
            max(
                errors.worst()
                for other, cell, errors in measured
                if (other, cell.problem.family, cell.problem.documents) == (name, problem.family, problem.documents)
            )
            for problem in FAMILIES.values()
        ]
        lines.append(f"| {name} | {' | '.join(f'{value:.0e}' for value in worst)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measured = measure([*matrix(), *extras()]), measure(single_precision()), measure(other_families(complete=True))
    Path("docs/layouts.md").write_text(page(*measured))
