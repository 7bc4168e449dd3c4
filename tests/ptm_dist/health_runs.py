"""Runs in which something goes wrong at a known step, and plain loops without it to compare with."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.batches import StepBatch
from data_pipeline.shards import TokenizedDocument, TokenizerIdentity, token_dtype, write_manifest, write_shard
from ptm_dist.checkpoint import CheckpointStore, latest
from ptm_dist.engines import build_engine
from ptm_dist.engines.engine import Accept, StepResult
from ptm_dist.engines.native import NativeEngine
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.parallel.control import ALONE
from ptm_dist.recipe.layout import ResolvedLayout, resolve_layout
from ptm_dist.recipe.schema import LayoutSection, Recipe
from ptm_dist.training import run as run_module
from ptm_dist.training.data import RecipeData
from ptm_dist.training.world import World
from tests.ptm_dist.runs import SPECIAL_IDS, VOCAB, make_recipe, start_run

STEPS = 20
RARE_STEP = 15
"""The step whose batch has a document of words that stand nowhere else."""


def write_texts(path: Path) -> Path:
    """40 documents of 48 tokens, 20 steps of 6 samples of 16; all but the 29th are of the same six words."""
    rng = np.random.default_rng(3)
    for name, count in (("train", 40), ("validation", 3)):
        documents = []
        for number in range(count):
            low, high = (2, 8) if number != 28 else (45, 60)
            tokens = np.append(rng.integers(low, high, size=47), 0)
            documents.append(TokenizedDocument(tokens, np.arange(0, 47, 5, dtype=np.int32), np.arange(48) % 2 == 0))
        (path / name).mkdir(parents=True)
        entries = [write_shard(path / name / "only.tar", "only", documents, token_dtype(VOCAB))]
        write_manifest(path / name, entries, TokenizerIdentity("0" * 64, VOCAB, SPECIAL_IDS), {})
    return path


def health_recipe(folder: Path, name: str, health: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    """Twenty steps in the order of the documents, with a window that is full before anything goes wrong."""
    sections["data"] = {"shuffle": "none"} | sections.get("data", {})
    sections["training"] = {"steps": STEPS} | sections.get("training", {})
    sections["optimizer"] = {"learning_rate": 0.01}
    return make_recipe(
        folder, name, health={"spike_window": 6, "spike_deviations": 4.0, "rollback_steps": 4} | health, **sections
    )


def plain_weights(recipe: Recipe, without: Collection[int]) -> dict[str, torch.Tensor]:
    """Weights of a loop by hand that never hears of the updates of some steps."""
    engine = _engine(recipe)
    training = recipe.training
    for batch in RecipeData(recipe).training(0, 0, 1):
        rate = learning_rate(recipe.schedule, recipe.optimizer.learning_rate, batch.step, training.steps)
        if batch.step + 1 not in without:
            engine.step(batch, rate)
    return _weights(engine)


def saved_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Weights of the newest checkpoint of a run, in all their digits."""
    engine = _engine(recipe)
    info = latest(recipe.directory / "checkpoints")
    CheckpointStore(info.path.parent, ALONE).load(info, engine.state())
    return _weights(engine)


def _engine(recipe: Recipe) -> NativeEngine:
    alone = LayoutSection(micro_batch_size=2)
    return NativeEngine(recipe, resolve_layout(alone, 1), torch.device("cpu"))


def _weights(engine: NativeEngine) -> dict[str, torch.Tensor]:
    return {name: held.local.clone() for name, held in engine.state().items() if name.startswith("model.")}


class Poisoned:
    """An engine whose gradient has an infinity in it at some steps, as a broken chip would make one."""

    def __init__(self, engine: Any, steps: Collection[int]) -> None:
        self._engine = engine
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, batch: StepBatch, rate: float, accept: Accept | None = None) -> StepResult:
        modules = []
        if batch.step + 1 in self._steps:
            stages = self._engine.model.stages.values()
            modules = [m for stage in stages for name, m in stage.module.named_modules() if name.endswith("ffn")]
        handles = [module.register_full_backward_hook(_spoil) for module in modules]
        try:
            return self._engine.step(batch, rate, accept)
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def poisoned(*steps: int) -> Iterator[None]:
    """While the body runs, engines of runs in this process are :class:`Poisoned`."""

    def build(recipe: Recipe, layout: ResolvedLayout, device: torch.device) -> Any:
        return Poisoned(build_engine(recipe, layout, device), steps)

    run_module.build_engine = build
    try:
        yield
    finally:
        run_module.build_engine = build_engine


def start_poisoned(recipe: Recipe, world_size: int, *steps: int) -> list[Any]:
    """Processes of a run of which the last rank computes some steps wrong."""
    return start_run(recipe, world_size, work=_PoisonedWork(steps))


class _PoisonedWork:
    """What a process of such a run does; can be pickled."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self._steps = steps

    def __call__(self, recipe: Recipe, world: World) -> None:
        torch.set_num_threads(1)
        with poisoned(*(self._steps if world.rank == world.world_size - 1 else ())):
            run_module.run(recipe, world)


def _spoil(module: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if gradient is None else torch.full_like(gradient, math.inf) for gradient in inputs)
