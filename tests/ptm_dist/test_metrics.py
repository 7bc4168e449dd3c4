from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ptm_dist.engines.engine import StepResult
from ptm_dist.parallel.control import ALONE, ControlGroup, control_group
from ptm_dist.training.console import ConsoleSink
from ptm_dist.training.flops import flops_per_token
from ptm_dist.training.machine import Machine
from ptm_dist.training.metrics import Interval, JsonLines, TensorBoard, drop_rows_after, lost_rows_path, read_rows
from ptm_dist.training.run_directory import RunDirectory
from ptm_dist.training.trainer import StepRecord
from tests.distributed import run_distributed
from tests.ptm_dist.recipes import small_recipe

RECIPE = small_recipe(data__sequence_length=64)
MACHINE = Machine(torch.device("cpu"), 2, 1e9, "measured", RECIPE)


def record(step: int, seconds: float, waited: float = 0.0, loss: float = 1.0, length: int = 64) -> StepRecord:
    result = StepResult(loss, 2.0 * loss, 1024, {"mlm_accuracy": loss / 4})
    return StepRecord(step, 8 * step, 800 * step, 8 * length, length, result, 1e-3 * step, seconds, waited)


def interval_of(control: ControlGroup, *records: StepRecord) -> dict:
    interval = Interval(MACHINE, control)
    for one in records:
        interval.add(one)
    return interval.take_row()


def test_a_row_averages_losses_and_times_and_keeps_every_loss():
    row = interval_of(ALONE, record(5, 0.25, 0.1, 0.1), record(6, 0.75, 0.2, 0.2, length=32))
    assert (row["step"], row["samples"], row["tokens"]) == (6, 48, 4800)
    assert row["mlm_accuracy"] == pytest.approx(0.0375)
    assert row["losses"] == [0.1, 0.2]
    assert (row["loss"], row["grad_norm"]) == (pytest.approx(0.15), pytest.approx(0.3))
    assert (row["step_seconds"], row["data_wait_seconds"]) == (0.5, pytest.approx(0.3))
    assert row["learning_rate"] == 6e-3
    assert row["tokens_per_second"] == 8 * 64 + 8 * 32
    assert row["tokens_per_second_per_device"] == 4 * 64 + 4 * 32
    long, short = flops_per_token(RECIPE, 64), flops_per_token(RECIPE, 32)
    assert row["mfu_full"] == pytest.approx((8 * 64 * long.full + 8 * 32 * short.full) / 1e9)
    assert row["mfu_causal"] == pytest.approx((8 * 64 * long.causal + 8 * 32 * short.causal) / 1e9)


def row_of_rank() -> dict:
    control = control_group()
    return interval_of(control, record(1, 1.0 + control.rank, 0.5 - 0.1 * control.rank))


def test_times_are_those_of_the_slowest_rank_and_equal_on_all():
    rows = run_distributed(row_of_rank, 3)
    assert [row["step_seconds"] for row in rows] == [3.0, 3.0, 3.0]
    assert [row["data_wait_seconds"] for row in rows] == [0.5, 0.5, 0.5]


def test_an_interval_without_steps_makes_no_row():
    interval = Interval(MACHINE, ALONE)
    interval.add(record(1, 1.0))
    assert interval.take_row() is not None
    assert interval.take_row() is None


def test_losses_read_back_equal_to_the_bit(tmp_path):
    losses = torch.rand(100, dtype=torch.float64).tolist()
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write({"kind": "train", "step": 1, "losses": losses})
    sink.close()
    assert read_rows(tmp_path / "metrics.jsonl")[0]["losses"] == losses


def test_rows_behind_the_resumed_step_and_half_written_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "train", "step": step} for step in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
    drop_rows_after(path, 3)
    assert read_rows(path) == rows[:3]
    sink = JsonLines(path)
    sink.write({"kind": "train", "step": 4})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
    sink.close()


def test_rows_of_work_that_is_done_again_are_kept_apart_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "train", "step": step, "time": f"first {step}"} for step in range(1, 6)]
    for _ in range(2):  # a kill after the rows were copied leaves them in the file, for the next start to move
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        drop_rows_after(path, 3)
    assert read_rows(lost_rows_path(path)) == rows[3:]
    again = {"kind": "train", "step": 4, "time": "second 4"}
    with path.open("a") as stream:
        stream.write(json.dumps(again) + "\n")
    drop_rows_after(path, 3)
    assert read_rows(lost_rows_path(path)) == [*rows[3:], again]
    assert read_rows(path) == rows[:3]


def test_an_event_after_a_half_written_one_starts_on_its_own_line(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.event("start", step=0)
    with directory.events.open("a") as stream:
        stream.write('{"time": "20')
    directory.event("stop", step=3)
    assert [row["event"] for row in read_rows(directory.events)] == ["start", "stop"]


def test_tensorboard_shows_the_numbers_and_hides_what_a_resumed_run_computes_again(tmp_path):
    first = TensorBoard(tmp_path, 0)
    for step in range(1, 6):
        first.write({"kind": "train", "step": step, "loss": 10.0 + step, "losses": [1.0]})
    first.close()
    second = TensorBoard(tmp_path, 3)
    second.write({"kind": "train", "step": 4, "loss": 20.0})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 11.0),
        (2, 12.0),
        (3, 13.0),
        (4, 20.0),
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_watcher_sees_step_loss_validation_speed_and_what_remains(terminal):
    screen = io.StringIO()
    sink = ConsoleSink(100, Console(file=screen, force_terminal=terminal, width=200, highlight=False))
    sink.write({"kind": "validation", "step": 4, "loss": 2.5, "perplexity": 12.18, "seconds": 0.5})
    sink.write(interval_of(ALONE, record(10, 2.0)) | {"kind": "train"})
    sink.close()
    text = screen.getvalue()
    assert "step 4: validation loss 2.5000, perplexity 12.18" in text
    for part in ("step 10/100", "loss 1.0000", "val 2.5000", "256 tokens/s", "MFU 5.7%", "0:03:00 left"):
        assert part in text
