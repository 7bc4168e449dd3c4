"""Checkpoints that are written beside the steps: what was there when they began, one at a time, never half."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.background import BackgroundSaves
from ptm_dist.checkpoint.store import CheckpointStore, latest, list_checkpoints, verify
from ptm_dist.errors import CheckpointError
from ptm_dist.parallel.control import ALONE, ControlGroup, control_group
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.training.metrics import read_rows
from tests.distributed import run_distributed
from tests.ptm_dist.runs import (
    events,
    kill_when,
    losses,
    make_recipe,
    run_alone,
    run_processes,
    start_run,
    validation_losses,
    weights,
    write_data,
)
from tests.ptm_dist.test_checkpoint_store import description

CPU = torch.device("cpu")
ROWS = 3000


def state(value: float, rank: int = 0, size: int = 1) -> dict[str, LocalShard]:
    """A sharded matrix, one that does not lie in one piece, and a vector that all ranks hold."""
    rows = torch.full((ROWS, 50), value)
    columns = torch.full((50, ROWS), value + 1).t()
    return {
        "a": LocalShard(rows, (ROWS * size, 50), (ROWS * rank, 0)),
        "b": LocalShard(columns, (ROWS * size, 50), (ROWS * rank, 0)),
        "c": LocalShard(torch.full((30,), value + 2, dtype=torch.bfloat16), (30,), (0,)),
        "d": LocalShard(torch.tensor(value + 3, dtype=torch.float64), (), ()),
    }


def values(of: dict[str, LocalShard]) -> list[float]:
    return [value for box in of.values() for value in box.local.unique().tolist()]


def saves(folder: Path, control: ControlGroup) -> tuple[CheckpointStore, BackgroundSaves]:
    store = CheckpointStore(folder, control)
    return store, BackgroundSaves(store, control, CPU)


def save_while_it_changes(folder: str) -> list[list[float]]:
    control = control_group()
    store, background = saves(Path(folder), control)
    changing, found = state(0.0, control.rank, control.size), []
    background.prepare(changing)
    for step in (1, 2, 3):
        for box in changing.values():
            box.local.add_(10.0)
        background.start(changing, description(step))
        for box in changing.values():
            box.local.mul_(-1.0)
        info = background.wait() if step % 2 else poll(background)
        loaded = state(torch.nan, control.rank, control.size)
        store.load(info, loaded)
        found.append(values(loaded))
        for box in changing.values():
            box.local.mul_(-1.0)
    background.close()
    return found


def poll(background: BackgroundSaves):
    while (info := background.poll()) is None:
        time.sleep(0.001)
    return info


def test_a_checkpoint_is_of_the_moment_when_it_began_on_all_ranks(tmp_path):
    expected = [[10.0 * step, 10.0 * step + 1, 10.0 * step + 2, 10.0 * step + 3] for step in (1, 2, 3)]
    assert run_distributed(save_while_it_changes, 2, str(tmp_path)) == [expected] * 2
    assert [verify(info.path) for info in list_checkpoints(tmp_path)] == [[]] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{step}" for step in (1, 2, 3)]


def test_a_save_beside_the_steps_writes_the_same_bytes_as_one_that_is_waited_for(tmp_path):
    (tmp_path / "a").mkdir()
    CheckpointStore(tmp_path / "a", ALONE).save(state(5.0), description(1))
    _, background = saves(tmp_path / "b", ALONE)
    background.start(state(5.0), description(1))
    background.wait()
    background.close()
    first, second = latest(tmp_path / "a"), latest(tmp_path / "b")
    assert first.manifest.files == second.manifest.files
    assert verify(second.path) == []


def fail_twice(small: str, large: str) -> list[str]:
    """A full disk on both ranks, then a process that is killed on one; messages and what is left."""
    control, told = control_group(), []
    store, background = saves(Path(small), control)
    store.save({"a": LocalShard(torch.ones(9), (9,), (0,))}, description(1))
    background.start(state(1.0, control.rank, control.size), description(2))
    told.append(message(background))
    _, background = saves(Path(large), control)
    background.prepare(state(1.0, control.rank, control.size))
    if control.rank == 1:
        os.kill(background._prepared.keeper.pid, signal.SIGKILL)
    try:
        background.start(state(1.0, control.rank, control.size), description(2))
        told.append(message(background))
    except CheckpointError as error:
        told.append(str(error))
    background.close()
    return told


def message(background: BackgroundSaves) -> str:
    try:
        poll(background)
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_a_save_that_fails_beside_the_steps_is_one_error_on_all_ranks_and_leaves_the_checkpoint_before(
    small_disk, tmp_path
):
    first, second = run_distributed(fail_twice, 2, str(small_disk), str(tmp_path), timeout=60.0)
    assert first[0] == second[0]
    assert "is full; earlier checkpoints are untouched" in first[0]
    assert [path.name for path in small_disk.iterdir()] == ["step-00000001"]
    assert verify(latest(small_disk).path) == []
    assert first[1] == second[1]
    assert "the process that writes checkpoints ended (exit code -9)" in first[1]
    assert list(tmp_path.iterdir()) == []


def test_the_process_beside_a_rank_dies_with_it_however_it_dies(tmp_path):
    write_data(tmp_path / "data")
    recipe = make_recipe(tmp_path, "a", training={"steps": 100_000}, data={"max_epochs": 1e9})
    (process,) = start_run(recipe, 1)
    while not events(recipe, "checkpoint"):
        assert process.is_alive()
        time.sleep(0.01)
    children = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    keepers = [child for child in children if b"ptm_dist.keeper.process" in command_line(child)]
    assert len(keepers) == 1
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while command_line(keepers[0]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not command_line(keepers[0])


def command_line(process_id: int) -> bytes:
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_a_run_whose_save_fails_ends_with_that_error_at_the_next_step(tmp_path, small_disk):
    write_data(tmp_path / "data")
    recipe = make_recipe(tmp_path, "a", training={"steps": 100_000, "precision": "fp64"}, data={"max_epochs": 1e9})
    (small_disk / "filling").write_bytes(bytes(900_000))
    recipe.directory.mkdir()
    (recipe.directory / "checkpoints").symlink_to(small_disk)
    with pytest.raises(CheckpointError, match="is full"):
        run_alone(recipe)
    assert len(losses(recipe)) < 100
    assert list_checkpoints(small_disk) == []


def test_metrics_and_events_say_how_long_the_steps_waited(tmp_path):
    write_data(tmp_path / "data")
    beside = make_recipe(tmp_path, "beside", checkpoint={"every": 1})
    waiting = make_recipe(tmp_path, "waiting", checkpoint={"every": 1, "asynchronous": False})
    for recipe in (beside, waiting):
        run_alone(recipe)
        found = events(recipe, "checkpoint")
        assert [event["step"] for event in found] == list(range(1, 13))
        stalls = sum(row.get("checkpoint_seconds", 0.0) for row in read_rows(recipe.directory / "metrics.jsonl"))
        # What comes behind the last row: the last save, and the rest of the one before.
        waits = [event["stall_seconds"] for event in found]
        assert sum(waits[:-2]) <= stalls + 1e-9 <= sum(waits)
        for event in found:
            assert 0 < event["stall_seconds"] <= event["seconds"]
            assert event["bytes"] > 100_000
    assert losses(beside) == losses(waiting)
    assert all(torch.equal(weights(beside)[name], tensor) for name, tensor in weights(waiting).items())
    # One at a time: a save begins when the one before is committed.
    ends = [datetime.fromisoformat(event["time"]).timestamp() for event in events(beside, "checkpoint")]
    begins = [end - event["seconds"] for end, event in zip(ends, events(beside, "checkpoint"), strict=True)]
    assert all(begin > end - 0.02 for end, begin in zip(ends, begins[1:], strict=False))


def test_a_run_that_is_killed_again_and_again_while_it_saves_ends_with_the_same_bits(tmp_path):
    write_data(tmp_path / "data")
    often = {"every": 1}
    through = make_recipe(tmp_path, "through", training={"steps": 60}, checkpoint=often)
    run_alone(through)
    recipe = make_recipe(tmp_path, "killed", training={"steps": 60}, checkpoint=often)
    folder, rng = recipe.directory / "checkpoints", random.Random(3)
    kills = interrupted = 0
    for _ in range(24):
        delay, before = rng.uniform(0.0, 0.04), len(events(recipe, "checkpoint"))
        processes = start_run(recipe, 1)

        def is_time(delay=delay, before=before) -> bool:
            is_saving = len(events(recipe, "checkpoint")) > before and any(folder.glob(".step-*"))
            return is_saving and time.sleep(delay) is None

        kills += kill_when(processes, is_time)
        interrupted += any(folder.glob(".step-*"))
        newest = latest(folder)
        assert newest is None or verify(newest.path) == []
    assert kills >= 20
    assert interrupted >= 10
    assert run_processes(recipe, 1) == [0]
    assert losses(recipe) == losses(through)
    assert validation_losses(recipe) == validation_losses(through)
    assert all(torch.equal(weights(recipe)[name], tensor) for name, tensor in weights(through).items())
    assert not any(folder.glob(".step-*"))
