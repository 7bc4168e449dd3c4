"""What a group of processes does in the tests of state on nvme, with a model whose shares are large enough for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ptm_dist.engines import build_engine, deepspeed_config
from ptm_dist.errors import RecipeError
from ptm_dist.parallel.boxes import boxes_of
from ptm_dist.recipe.layout import resolve_layout
from tests.parity.cells import Problem, slice_batch
from tests.ptm_dist.deepspeed_cases import Case, Outcome, gather, relay, running, scale_power, train


@dataclass(frozen=True)
class WideProblem(Problem):
    """DeepSpeed swaps what is 1 MiB or more on a rank: here most matrices, and parts of the optimizer's state."""

    @property
    def model(self) -> dict[str, Any]:
        return super().model | {"hidden_size": 512, "ffn_hidden_size": 2048, "num_layers": 1}


@contextmanager
def small_sub_groups() -> Iterator[None]:
    """So that a model this small has several, of which the last ones are too small to be swapped."""
    own = deepspeed_config.SUB_GROUP
    deepspeed_config.SUB_GROUP = 600_000
    yield
    deepspeed_config.SUB_GROUP = own


def is_built() -> bool:
    """Whether DeepSpeed's operation for files is in torch's build cache; to build it takes minutes."""
    cache = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    return any(Path(cache).rglob("async_io.so"))


def files_under(folder: Path) -> dict[str, int]:
    """Sizes of the files of all ranks by name."""
    dist.barrier()
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*.swp")}
    dist.barrier()
    return sizes


def swapped_outcome(case: Case, folder: Path) -> tuple[Outcome, dict[str, int]]:
    """What training gives, and what lay in `folder` in its middle."""
    with running(case) as engine:
        half = case.problem.steps // 2
        trace = train(engine, case.problem, 0, half)
        files = files_under(folder)
        # Neither reading state nor validating, which fetches in another order, changes what comes after.
        before = [box.local.sum() for held in engine.state().values() for box in boxes_of(held)]
        engine.evaluate([slice_batch(case.problem, 0, engine)])
        assert before == [box.local.sum() for held in engine.state().values() for box in boxes_of(held)]
        rest = train(engine, case.problem, half, case.problem.steps)
        trace.losses += rest.losses
        trace.norms += rest.norms
        trace.weights = {name[6:]: tensor for name, tensor in gather(engine, "model.").items()}
        return Outcome(trace, {}, engine.engine.skipped_steps), files


@dataclass
class Findings:
    """All that one group of processes finds; `left` are the files after each case."""

    outcomes: dict[str, Outcome]
    files: dict[str, dict[str, int]]
    left: dict[str, dict[str, int]]
    losses: list[float]
    same: list[bool]


def everything(cases: dict[str, Case], turns: list[Case], folder: Path) -> Findings | str:
    """Why nothing can be swapped here, or what is found."""
    # Not the tests' own cache, which is empty.
    os.environ.pop("XDG_CACHE_HOME", None)
    findings = Findings({}, {}, {}, [], [])
    for name, case in cases.items():
        try:
            with small_sub_groups(), scale_power(case.scale_power):
                findings.outcomes[name], findings.files[name] = swapped_outcome(case, folder)
        except RecipeError as error:
            return str(error)
        findings.left[name] = files_under(folder)
    with small_sub_groups():
        findings.losses, findings.same = relay(turns, 2)
    return findings


def refusal(case: Case) -> str:
    """What a machine without compilers says."""
    os.environ["PATH"] = ""
    recipe = case.recipe()
    try:
        build_engine(recipe, resolve_layout(recipe.layout, dist.get_world_size()), torch.device("cpu"))
    except RecipeError as error:
        return str(error)
    return "accepted"
