from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_pipeline.batches import StepBatch
from data_pipeline.errors import DataError
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.engines.engine import Accept, StepResult
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.parallel.control import PeerError, control_group
from ptm_dist.training.callbacks import StopAtStep
from ptm_dist.training.trainer import Callback, DivergenceError, Progress, Trainer
from tests.distributed import run_distributed
from tests.ptm_dist.runs import make_recipe


class ScriptedEngine:
    """Gives losses from a list; what a loop does with them needs no model."""

    def __init__(self, losses: list[float], norm: float = 1.0) -> None:
        self.losses, self.norm = losses, norm
        self.rates: list[float] = []

    def step(self, batch: StepBatch, rate: float, accept: Accept | None = None) -> StepResult:
        self.rates.append(rate)
        return StepResult(self.losses[batch.step], self.norm, 96)


class Diary(Callback):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_start(self, trainer):
        self.lines.append("start")

    def on_step(self, trainer, record):
        self.lines.append(f"{record.step} {record.samples} {record.result.loss}")

    def on_end(self, trainer):
        self.lines.append("end")


def batches(begin: int, end: int) -> Iterator[StepBatch]:
    for step in range(begin, end):
        rows = torch.zeros(6, 16, dtype=torch.int64)
        full, no_pairs = torch.full((6,), 16), torch.full((6,), IGNORE_INDEX)
        yield StepBatch(step, 6 * step, 6, np.arange(6), rows, rows, full, rows, no_pairs)


def trainer_of(engine: ScriptedEngine, *callbacks: Callback, done: int = 0) -> Trainer:
    recipe = make_recipe(Path("unused"), "a")
    return Trainer(engine, recipe, Progress(done, 6 * done), callbacks)


def test_every_step_is_told_to_every_callback_with_samples_consumed_so_far():
    diary = Diary()
    trainer = trainer_of(ScriptedEngine([3.0, 2.0, 1.0] * 4), diary)
    trainer.run(batches(0, 12))
    assert diary.lines[:3] == ["start", "1 6 3.0", "2 12 2.0"]
    assert diary.lines[-2:] == ["12 72 1.0", "end"]
    assert trainer.is_finished


def test_learning_rates_go_on_from_the_step_where_the_run_stands():
    engine = ScriptedEngine([1.0] * 12)
    trainer = trainer_of(engine, done=5)
    trainer.run(batches(5, 12))
    recipe = trainer.recipe
    assert engine.rates == [learning_rate(recipe.schedule, 3e-3, step, 12) for step in range(5, 12)]


def test_a_stop_lets_callbacks_behind_it_see_the_last_step():
    before, after = Diary(), Diary()
    trainer = trainer_of(ScriptedEngine([1.0] * 12), before, StopAtStep(4), after)
    trainer.run(batches(0, 12))
    assert before.lines == after.lines
    assert after.lines[-2:] == ["4 24 1.0", "end"]
    assert (trainer.stop_reason, trainer.is_finished) == ("launch.stop_at_step=4", False)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_step_that_is_no_number_is_named_and_no_callback_sees_it(loss, norm):
    diary = Diary()
    engine = ScriptedEngine([1.0] * 6 + [loss] * 6)
    trainer = trainer_of(engine, diary)
    trainer.run(batches(0, 6))
    engine.norm = norm
    with pytest.raises(DivergenceError, match=r"step 7: .*--step 7"):
        trainer.run(batches(6, 12))
    assert not any(line.startswith("7 ") for line in diary.lines)


def test_waiting_for_data_counts_as_part_of_the_step():
    import time

    def slow() -> Iterator[StepBatch]:
        for batch in batches(0, 2):
            time.sleep(0.05)
            yield batch

    class Times(Callback):
        def on_step(self, trainer, record):
            assert record.seconds >= record.data_wait_seconds >= 0.05

    trainer_of(ScriptedEngine([1.0] * 12), Times()).run(slow())


def fail_together(kind: str) -> str:
    control = control_group()

    def action() -> int:
        if control.rank == 1:
            raise DataError("shard 3 is missing") if kind == "user" else ZeroDivisionError("oops")
        return control.rank

    try:
        control.together(action)
    except Exception as error:
        dist.barrier()
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_a_users_mistake_met_by_one_rank_is_raised_by_all():
    assert run_distributed(fail_together, 3, "user") == ["DataError: shard 3 is missing"] * 3


def test_any_other_failure_of_one_rank_names_it_on_the_others():
    results = run_distributed(fail_together, 3, "other")
    assert results[1] == "ZeroDivisionError: oops"
    assert results[0] == results[2] == f"{PeerError.__name__}: rank 1 failed: ZeroDivisionError: oops"
