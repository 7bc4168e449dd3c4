"""Which checkpoints stay, when a run saves, and how often it should."""

from __future__ import annotations

import math
import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.retention import Best, in_use, prune
from ptm_dist.checkpoint.store import CheckpointInfo, CheckpointStore, Description, latest, list_checkpoints, sweep
from ptm_dist.errors import RecipeError
from ptm_dist.parallel.control import ALONE
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.training.intervals import IntervalAdvice, young_interval
from ptm_dist.training.metrics import read_rows
from tests.ptm_dist.runs import events, make_recipe, run_alone, run_processes, start_run, write_data

_fork = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


def save(directory: Path, step: int, **figures: float) -> CheckpointInfo:
    description = Description(
        step=step,
        samples=8 * step,
        recipe={},
        recipe_fingerprint="r",
        model_fingerprint="m",
        layout="single process",
        data_fingerprint="d",
        metrics={f"validation_{name}": value for name, value in figures.items()},
        torch_version=torch.__version__,
        world_size=1,
        saved_at="2026-01-01T00:00:00+00:00",
    )
    state = {"model.w": LocalShard(torch.full((1000,), float(step)), (1000,), (0,))}
    return CheckpointStore(directory, ALONE).save(state, description)


def steps(directory: Path) -> list[int]:
    return [info.step for info in list_checkpoints(directory)]


def test_milestones_are_never_deleted(tmp_path):
    for step in range(100, 1100, 100):
        save(tmp_path, step)
        prune(tmp_path, keep_last=2, keep_every=300)
    assert steps(tmp_path) == [300, 600, 900, 1000]


@pytest.mark.parametrize(
    ("best", "kept"),
    [
        (Best("loss"), 200),
        (Best("loss", "highest"), 100),
        (Best("mlm_accuracy"), 300),
        (Best("mlm_accuracy", "lowest"), 100),
        (Best("perplexity"), None),
    ],
)
def test_the_best_is_by_whatever_figure_in_whatever_direction(tmp_path, best, kept):
    for step, loss, accuracy in ((100, 3.0, 0.1), (200, 2.0, 0.3), (300, 2.5, 0.4)):
        save(tmp_path, step, loss=loss, mlm_accuracy=accuracy)
    save(tmp_path, 400)
    prune(tmp_path, keep_last=1, best=best)
    assert steps(tmp_path) == ([400] if kept is None else [kept, 400])


def test_of_equally_good_ones_the_newest_stays(tmp_path):
    for step in (100, 200, 300):
        save(tmp_path, step, loss=2.0)
    save(tmp_path, 400, loss=2.5)
    prune(tmp_path, keep_last=1)
    assert steps(tmp_path) == [300, 400]


def hold(checkpoint: str, holding: multiprocessing.synchronize.Event) -> None:
    with in_use(Path(checkpoint)):
        holding.set()
        time.sleep(60)


def test_what_another_process_uses_stays_until_that_process_ends_even_by_a_kill(tmp_path):
    first, _, _ = (save(tmp_path, step) for step in (100, 200, 300))
    holding = _fork.Event()
    process = _fork.Process(target=hold, args=(str(first.path), holding))
    process.start()
    assert holding.wait(30)
    assert [path.name for path in prune(tmp_path, keep_last=1)] == ["step-00000200"]
    assert steps(tmp_path) == [100, 300]
    process.kill()
    process.join()
    prune(tmp_path, keep_last=1)
    assert steps(tmp_path) == [300]


def delete_for_ever(directory: str) -> None:
    folder = Path(directory)
    for step in range(latest(folder).step + 1, 10_000):
        save(folder, step)
        for part in range(500):
            (folder / f"step-{step:08d}" / f"part-{part}").write_text("slow to delete")
        prune(folder, keep_last=1)


def test_a_kill_while_old_ones_are_deleted_leaves_only_whole_ones_and_what_the_next_start_sweeps(tmp_path):
    save(tmp_path, 1)
    cut_off = 0
    for _ in range(5):
        process = _fork.Process(target=delete_for_ever, args=(str(tmp_path),))
        process.start()
        while process.is_alive() and not list(tmp_path.glob(".trash-*")):
            time.sleep(0.0005)
        process.kill()
        process.join()
        cut_off += len(list(tmp_path.glob(".trash-*")))
        assert list_checkpoints(tmp_path)
        assert len(steps(tmp_path)) == len(list(tmp_path.glob("step-*")))
        sweep(tmp_path)
        assert not list(tmp_path.glob(".*"))
    assert cut_off > 0


def test_a_run_keeps_the_newest_its_milestones_and_the_best(folder):
    write_data(folder / "data")
    recipe = make_recipe(
        folder,
        "a",
        evaluation={"every": 1},
        schedule={"warmup_steps": 0, "kind": "constant"},
        checkpoint={"every": 2, "keep_last": 1, "keep_every": 5, "save_best": True, "best_is": "highest"},
    )
    run_alone(recipe)
    rows = [row for row in read_rows(recipe.directory / "metrics.jsonl") if row["kind"] == "validation"]
    worst = max(rows, key=lambda row: row["loss"])["step"]
    assert steps(recipe.directory / "checkpoints") == sorted({worst, 5, 10, 12})
    assert [row["best_loss"] for row in rows] == [min(r["loss"] for r in rows[: n + 1]) for n in range(12)]


def test_the_best_of_earlier_lives_stays_the_one_to_beat(folder):
    write_data(folder / "data")
    changes = {"evaluation": {"every": 1}, "checkpoint": {"every": 0, "keep_last": 1, "save_best": True}}
    changes["checkpoint"]["best_by"], changes["checkpoint"]["best_is"] = "perplexity", "highest"
    first = make_recipe(folder, "a", launch={"stop_at_step": 1}, optimizer={"learning_rate": 1e-2}, **changes)
    run_alone(first)
    run_alone(make_recipe(folder, "a", optimizer={"learning_rate": 1e-2}, **changes))
    rows = [row for row in read_rows(first.directory / "metrics.jsonl") if row["kind"] == "validation"]
    assert max(rows, key=lambda row: row["perplexity"])["step"] == 1
    assert [event["step"] for event in events(first, "checkpoint")] == [1, 12]
    assert steps(first.directory / "checkpoints") == [1, 12]


def test_what_a_run_starts_from_stays_until_it_has_a_checkpoint_of_its_own(folder):
    write_data(folder / "data")
    source = make_recipe(folder, "source", training={"steps": 300}, launch={"stop_at_step": 3})
    run_alone(source)
    elsewhere = source.directory / "checkpoints"
    save(elsewhere, 50)
    start = elsewhere / "step-00000003"
    second = make_recipe(folder, "second", training={"steps": 300}, checkpoint={"load_from": str(start), "every": 300})
    (process,) = start_run(second, 1)
    try:
        assert _prune_until_gone(elsewhere, start, second.directory)
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()


def _prune_until_gone(elsewhere: Path, start: Path, run: Path) -> bool:
    """Prune while the second run trains; whether the start outlived all of it before that run's first checkpoint."""
    metrics, own = run / "metrics.jsonl", run / "checkpoints"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and '"kind": "train"' in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.002)
    tried = 0
    while start.exists() and time.monotonic() < deadline:
        if prune(elsewhere, keep_last=1):
            return tried > 0 and bool(list(own.glob("step-*")))
        tried += 1
        time.sleep(0.002)
    return False


def test_a_figure_that_no_validation_has_is_refused_before_the_first_step(folder):
    write_data(folder / "data")
    recipe = make_recipe(folder, "a", checkpoint={"best_by": "mlm_accuracy"})
    with pytest.raises(RecipeError, match=r"checkpoint.best_by=mlm_accuracy is no figure .* use loss or perplexity"):
        run_alone(recipe)
    assert steps(recipe.directory / "checkpoints") == []


def test_a_run_saves_by_the_clock_the_same_steps_on_all_ranks(folder):
    write_data(folder / "data")
    often = make_recipe(folder, "often", checkpoint={"every": 0, "every_minutes": 1e-9, "keep_last": 20})
    assert run_processes(often, 2) == [0, 0]
    assert steps(often.directory / "checkpoints") == list(range(1, 13))
    seldom = make_recipe(folder, "seldom", checkpoint={"every": 0, "every_minutes": 60, "keep_last": 20})
    run_alone(seldom)
    assert steps(seldom.directory / "checkpoints") == [12]


def test_a_run_says_once_how_often_to_save(folder, capsys):
    write_data(folder / "data")
    recipe = make_recipe(folder, "a", checkpoint={"every": 2, "mean_hours_between_failures": 5.0})
    run_alone(recipe)
    (advice,) = events(recipe, "checkpoint_interval")
    saves = [event["stall_seconds"] for event in events(recipe, "checkpoint")][:2]
    assert advice["save_seconds"] == pytest.approx(sum(saves) / 2, rel=0.01)
    assert advice["seconds"] == pytest.approx(math.sqrt(2 * advice["save_seconds"] * 5 * 3600))
    assert advice["steps"] > 0
    assert capsys.readouterr().out.count("least time is lost by saving every") == 1


def test_the_advised_interval_loses_less_than_others_in_a_simulation():
    save_cost, mean_life = 30.0, 6 * 3600.0
    advised = young_interval(save_cost, mean_life)
    lost = {factor: _lost(advised * factor, save_cost, mean_life) for factor in (0.33, 1.0, 3.0)}
    assert lost[1.0] < lost[0.33]
    assert lost[1.0] < lost[3.0]


def _lost(interval: float, save_cost: float, mean_life: float) -> float:
    """Share of the time lost to saves and to work that failures undo, over many exponential lives."""
    generator = torch.Generator().manual_seed(1)
    lives = torch.empty(200_000, dtype=torch.float64).exponential_(1.0 / mean_life, generator=generator)
    useful = interval * (lives / (interval + save_cost)).floor()
    return 1.0 - (useful.sum() / lives.sum()).item()


def test_advice_comes_after_the_second_save_and_counts_usual_steps():
    advice = IntervalAdvice(2.0)
    for seconds in (30.0, 1.0, 1.0):
        advice.add_step(seconds)
    assert advice.after_save(3.0) is None
    said = advice.after_save(1.0)
    assert (said.save_seconds, said.seconds, said.steps) == (2.0, math.sqrt(4 * 7200), round(math.sqrt(4 * 7200)))
    assert "checkpoint.every=170" in said.in_words()
    assert advice.after_save(1.0) is None
    assert IntervalAdvice(None).after_save(1.0) is None
