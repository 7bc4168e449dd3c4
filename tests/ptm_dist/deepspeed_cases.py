"""What a group of processes does in the tests of the DeepSpeed engine: many cases, one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ptm_dist.checkpoint.state import load_state, save_state
from ptm_dist.engines import build_engine
from ptm_dist.engines.engine import Engine
from ptm_dist.parallel.boxes import boxes_of, global_shape_of
from ptm_dist.parallel.control import control_group
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from tests.parity.cells import LEARNING_RATE, Cell, Problem, Trace, initial_weights, slice_batch

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A problem and how it is computed on two processes."""

    problem: Problem
    layout: dict[str, Any]
    accumulation: int = 1
    engine: str = "deepspeed"
    optimizer: dict[str, Any] = field(default_factory=dict)
    scale_power: int | None = None
    """Of the first loss scale of fp16."""
    section: dict[str, Any] = field(default_factory=dict)
    """What `deepspeed` has in the recipe."""

    def recipe(self) -> Recipe:
        values = Cell(self.problem, 2, self.layout, self.accumulation).recipe().model_dump(mode="json")
        values["optimizer"] |= self.optimizer
        return Recipe.model_validate(values | {"engine": self.engine, "deepspeed": self.section})


@dataclass(frozen=True)
class Outcome:
    """Losses, norms and last weights; beside them how often DeepSpeed skipped an update."""

    trace: Trace
    state: State
    skipped: int


@contextmanager
def running(case: Case) -> Iterator[Engine]:
    """The engine of a case with the random weights of its problem."""
    recipe = case.recipe()
    engine = build_engine(recipe, resolve_layout(recipe.layout, dist.get_world_size()), torch.device("cpu"))
    weights = initial_weights(case.problem)
    for name, held in engine.state().items():
        for box in boxes_of(held):
            if name.startswith("model."):
                box.local.copy_(box.cut(weights[name.removeprefix("model.")]))
    engine.loaded(0)
    yield engine
    engine.close()


def gather(engine: Engine, prefix: str = "") -> State:
    """Whole tensors of the names that start so; fails where an element has no owner."""
    state = {name: held for name, held in engine.state().items() if name.startswith(prefix)}
    mine = {name: [(box.offset, box.local.clone()) for box in boxes_of(held)] for name, held in state.items()}
    by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, mine)
    whole = {}
    for name, held in state.items():
        whole[name] = torch.full(global_shape_of(held), torch.nan)
        for boxes in by_rank:
            for offset, local in boxes[name]:
                ranges = zip(offset, local.shape, strict=True)
                whole[name][tuple(slice(begin, begin + size) for begin, size in ranges)] = local
        assert not whole[name].isnan().any(), f"no rank holds all of {name}"
    return whole


def train(engine: Engine, problem: Problem, begin: int, end: int) -> Trace:
    trace = Trace()
    for step in range(begin, end):
        result = engine.step(slice_batch(problem, step, engine), LEARNING_RATE)
        trace.losses.append(result.loss)
        trace.norms.append(result.grad_norm)
    return trace


def outcome(case: Case) -> Outcome:
    with scale_power(case.scale_power), running(case) as engine:
        trace = train(engine, case.problem, 0, case.problem.steps)
        trace.validation = engine.evaluate([slice_batch(case.problem, case.problem.steps, engine)]).loss
        state = gather(engine)
        trace.weights = {name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")}
        return Outcome(trace, state, engine.engine.skipped_steps if case.engine == "deepspeed" else 0)


def outcomes(cases: dict[str, Case]) -> dict[str, Outcome]:
    return {name: outcome(case) for name, case in cases.items()}


def initial_states(cases: list[Case]) -> list[State]:
    """As the engines make them from the seed."""
    states = []
    for case in cases:
        recipe = case.recipe()
        engine = build_engine(recipe, resolve_layout(recipe.layout, dist.get_world_size()), torch.device("cpu"))
        states.append(gather(engine))
        engine.close()
    return states


def relay(cases: list[Case], steps: int) -> tuple[list[float], list[bool]]:
    """Train `steps` steps with each case in turn, each from a checkpoint of the one before.

    Returns: all losses, and for each hand-over whether the loaded state has the same bits as the saved one.
    """
    losses: list[float] = []
    same = []
    saved: State = {}
    directory = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(directory)
    for turn, case in enumerate(cases):
        with running(case) as engine:
            if turn:
                load_state(engine.state(), Path(directory[0], str(turn)), control_group())
                engine.loaded(turn * steps)
                loaded = gather(engine)
                same.append(loaded.keys() == saved.keys() and all(torch.equal(loaded[n], saved[n]) for n in saved))
            losses += train(engine, case.problem, turn * steps, (turn + 1) * steps).losses
            Path(directory[0], str(turn + 1)).mkdir(exist_ok=True)
            dist.barrier()
            save_state(engine.state(), Path(directory[0], str(turn + 1)), control_group())
            saved = gather(engine)
    return losses, same


@contextmanager
def scale_power(power: int | None) -> Iterator[None]:
    """Another first loss scale than the engine's own."""
    from ptm_dist.engines import deepspeed_config

    own = deepspeed_config.INITIAL_SCALE_POWER
    deepspeed_config.INITIAL_SCALE_POWER = power or own
    yield
    deepspeed_config.INITIAL_SCALE_POWER = own
