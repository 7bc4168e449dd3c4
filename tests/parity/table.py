"""The parity table: which cells there are, their measurement, and docs/layouts.md made from it.

``python -m tests.parity.table`` measures every cell and writes the page.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import Progress

from tests.distributed import run_distributed
from tests.parity.cells import Cell, Errors, Problem, reference_name, reference_trace, run_cells
from tests.parity.layouts import DOUBLE, EVERY, Setting

FP64_TOLERANCE = 1e-12
"""A mistake shows at 1e-3, rounding of another order of sums at 1e-14, and Adam makes more of it where gradients are
near zero."""
FP32_TOLERANCE = 1e-5
"""Five steps of Adam on float32 rounding noise."""
TOLERANCES = {"fp64": FP64_TOLERANCE, "fp32": FP32_TOLERANCE, "bf16": None}
OTHER_STEP = 5
"""The other families are measured at every fifth setting."""
CELLS_OF_A_WORLD = 24
"""Cells that one group of processes runs: each leaves process groups behind, and each of those holds threads."""

HARD = {"vocab_size": 101, "global_batch": 10, "steps": 5, "num_layers": 5}
"""A vocabulary, a batch and a number of layers that no number of ranks divides."""
FAMILIES = {
    "gpt2 (tied)": Problem("gpt2", **HARD),
    "bert (MLM + NSP)": Problem("bert", **HARD),
    "albert (one block)": Problem("albert", **HARD),
}
DROPPING = {f"{name}, dropout 0.1": replace(problem, dropout=0.1) for name, problem in FAMILIES.items()}
DROPPING_STEP = 3
"""Runs with dropout are measured at every third setting."""
OTHER_FAMILIES = {
    "gpt1": Problem("gpt1", **HARD),
    "gpt2, untied": Problem("gpt2", tied=False, **{**HARD, "vocab_size": 96}),
    "gpt3 (banded)": Problem("gpt3", **HARD),
    "gpt3, documents apart": Problem("gpt3", documents=True, **HARD),
    "roberta": Problem("roberta", **HARD),
    "albert, two blocks": Problem("albert", layer_groups=2, **HARD),
}


@dataclass(frozen=True)
class Measured:
    """A cell and what came of it."""

    family: str
    setting: Setting
    errors: Errors
    collectives: int

    @property
    def passes(self) -> bool:
        """Whether its errors are below the tolerance of its precision.

        In float32 weights do not count: where a gradient is nearly zero, Adam makes whole steps of its rounding.
        """
        tolerance = TOLERANCES[self.setting.precision]
        if self.setting.precision == "fp64":
            return self.errors.worst() < FP64_TOLERANCE
        return tolerance is None or max(self.errors.loss, self.errors.gradient, self.errors.validation) < tolerance


class Notebook:
    """Cells that are measured already, so that an interrupted `make parity` goes on where it stood.

    Args:
        path: of the file; it belongs to one state of the sources.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Measured] = torch.load(path, weights_only=False) if path.exists() else []

    def has(self, family: str, setting: Setting) -> bool:
        return any((row.family, row.setting) == (family, setting) for row in self.rows)

    def add(self, rows: list[Measured]) -> None:
        self.rows += rows
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.rows, self._path)


def measure(
    families: dict[str, Problem],
    settings: Sequence[Setting],
    device: str = "cpu",
    progress: Progress | None = None,
    notebook: Notebook | None = None,
) -> list[Measured]:
    """Run every problem at every setting, those of one world size a few at a time in one group of processes."""
    cells = [(family, problem, setting) for setting in settings for family, problem in families.items()]
    task = progress.add_task("cells", total=len(cells)) if progress is not None else None
    by_world: dict[int, list[tuple[str, Setting, Cell]]] = defaultdict(list)
    for family, problem, setting in cells:
        if notebook is not None and notebook.has(family, setting):
            continue
        precise = replace(problem, precision=setting.precision)
        cell = Cell(precise, setting.world_size, setting.layout, setting.accumulation)
        by_world[setting.world_size].append((family, setting, cell))
    measured = []
    with tempfile.TemporaryDirectory() as references:
        for world, all_cells in by_world.items():
            for first in range(0, len(all_cells), CELLS_OF_A_WORLD):
                rows = _measure_together(world, all_cells[first : first + CELLS_OF_A_WORLD], references, device)
                measured += rows
                if notebook is not None:
                    notebook.add(rows)
                if progress is not None and task is not None:
                    progress.advance(task, len(rows))
    if notebook is None:
        return measured
    found = {(row.family, row.setting.name): row for row in notebook.rows}
    return [found[family, setting.name] for family, _, setting in cells]


def _measure_together(
    world: int, cells: Sequence[tuple[str, Setting, Cell]], references: str, device: str
) -> list[Measured]:
    for problem in {cell.problem for _, _, cell in cells}:
        path = Path(references) / reference_name(problem)
        if not path.exists():
            torch.save(reference_trace(problem), path)
    backend = "nccl" if device == "cuda" else "gloo"
    plain = [cell for _, _, cell in cells]
    rows = run_distributed(run_cells, world, plain, references, device, timeout=1500, backend=backend)[0]
    return [
        Measured(family, setting, Errors(**errors), collectives)
        for (family, setting, _), (errors, collectives) in zip(cells, rows, strict=True)
    ]


def page(measured: list[Measured], dropping: list[Measured], others: list[Measured]) -> str:
    """The Markdown of docs/layouts.md."""
    template = Path(__file__).with_name("layouts.template.md").read_text()
    every = [*measured, *dropping, *others]
    verdict = f"{len(every)} cells, {sum(not row.passes for row in every)} failed"
    tables = {"@TABLE@": _table(measured), "@DROPOUT@": _table(dropping), "@FAMILIES@": _family_table(others)}
    for place, table in tables.items():
        template = template.replace(place, table)
    return template.replace("@TORCH@", torch.__version__).replace("@VERDICT@", verdict)


def _table(measured: list[Measured]) -> str:
    families = list(dict.fromkeys(row.family for row in measured))
    columns = [f"{family}: {what}" for family in families for what in ("gradients", "loss", "calls")]
    lines = [f"| layout | ranks | {' | '.join(columns)} | |", "|---" * (3 + len(columns)) + "|"]
    for setting in dict.fromkeys(row.setting.name for row in measured):
        rows = [row for row in measured if row.setting.name == setting]
        figures = [f"{r.errors.gradient:.0e} | {r.errors.loss:.0e} | {r.collectives}" for r in rows]
        verdict = (
            "reported" if rows[0].setting.precision == "bf16" else "pass" if all(r.passes for r in rows) else "FAIL"
        )
        lines.append(f"| {setting} | {rows[0].setting.world_size} | {' | '.join(figures)} | {verdict} |")
    return "\n".join(lines)


def _family_table(measured: list[Measured]) -> str:
    """Worst error of all parts, by layout and family."""
    families = list(dict.fromkeys(row.family for row in measured))
    lines = [f"| layout | {' | '.join(families)} |", "|---" * (1 + len(families)) + "|"]
    for setting in dict.fromkeys(row.setting.name for row in measured):
        worst = [f"{row.errors.worst():.0e}" for row in measured if row.setting.name == setting]
        lines.append(f"| {setting} | {' | '.join(worst)} |")
    return "\n".join(lines)


def sources() -> str:
    """A hash of what the figures depend on."""
    files = sorted([*Path("ptm_dist").rglob("*.py"), *Path("tests/parity").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


if __name__ == "__main__":
    notebook = Notebook(Path(f"runs/parity/{sources()}.pt"))
    with Progress() as progress:
        own = measure(FAMILIES, EVERY, progress=progress, notebook=notebook)
        dropping = measure(DROPPING, DOUBLE[1::DROPPING_STEP], progress=progress, notebook=notebook)
        others = measure(OTHER_FAMILIES, DOUBLE[::OTHER_STEP], progress=progress, notebook=notebook)
    Path("docs/layouts.md").write_text(page(own, dropping, others))
