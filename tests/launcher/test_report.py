"""`ptm report` of real runs that were killed, stopped and continued."""

from __future__ import annotations

import json
import time
from datetime import datetime
from itertools import pairwise

import pytest

from launcher.report.goodput import Part, parts_of
from launcher.report.report import make_report
from launcher.report.timeline import End
from ptm_dist.training.metrics import lost_rows_path, read_rows
from tests.ptm_dist.runs import kill_when, make_recipe, run_alone, run_processes, start_run, write_data

STEPS = 24
SECTIONS = {
    "training": {"steps": STEPS},
    "evaluation": {"every": 10},
    "checkpoint": {"every": 6, "save_best": False},
    "logging": {"every": 1},
}
PAUSE_SECONDS = 0.5


def rows_up_to(recipe):
    rows = read_rows(recipe.directory / "metrics.jsonl")
    return max((row["step"] for row in rows), default=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four lives: killed behind step 6, killed behind step 12 on two processes, stopped, and finished."""
    folder = tmp_path_factory.mktemp("report")
    write_data(folder / "data")
    recipe = make_recipe(folder, "run", **SECTIONS)
    assert kill_when(start_run(recipe, 1), lambda: rows_up_to(recipe) >= 9)
    sharded = make_recipe(folder, "run", **SECTIONS, layout={"zero_stage": 3, "micro_batch_size": 2})
    assert kill_when(start_run(sharded, 2), lambda: rows_up_to(recipe) >= 15)
    assert run_processes(make_recipe(folder, "run", **SECTIONS, launch={"stop_at_step": 20, "device": "cpu"}), 1) == [0]
    time.sleep(PAUSE_SECONDS)
    run_alone(recipe)
    return recipe


@pytest.fixture(scope="module")
def report(run):
    return make_report(run.directory)


def rows_of(path, kind):
    return [row for row in read_rows(path) if row["kind"] == kind]


def test_the_lives_are_those_that_were_lived(report):
    lives = report.timeline.lives
    assert [life.end for life in lives] == [End.VANISHED, End.VANISHED, End.STOPPED, End.FINISHED]
    starts = [life.start_step for life in lives]
    assert starts[0] == 0
    assert starts[3] == 20
    assert [life.kept for life in lives] == [*starts[1:], STEPS]
    assert all(life.reached >= then.start_step for life, then in pairwise(lives))
    assert lives[0].reached >= 9
    assert lives[1].reached >= 15
    assert [life.world_size for life in lives] == [1, 2, 1, 1]
    assert lives[1].layout != lives[0].layout
    assert all(life.began < life.stepping < life.first_step <= life.ended for life in lives)


def test_the_parts_of_the_time_add_up_to_the_wall_time(report):
    book = report.account
    assert sum(book.seconds.values()) == pytest.approx(book.wall_seconds, abs=1e-5)
    assert all(seconds >= 0 for seconds in book.seconds.values())
    for life in report.timeline.lives:
        assert sum(parts_of(life).values()) == pytest.approx(life.ended - life.began, abs=1e-5)
    assert book.seconds[Part.QUEUE] == 0
    assert book.seconds[Part.PAUSED] >= PAUSE_SECONDS
    assert min(book.seconds[part] for part in (Part.START_UP, Part.LOST, Part.DOWNTIME, Part.CHECKPOINT)) > 0
    assert book.goodput_running > book.goodput


def test_useful_is_the_time_of_the_steps_in_the_run(run, report):
    rows = rows_of(run.directory / "metrics.jsonl", "train")
    steps = sum(row["step_seconds"] * len(row["losses"]) for row in rows)
    waited = sum(row["data_wait_seconds"] for row in rows)
    useful, data = report.account.seconds[Part.USEFUL], report.account.seconds[Part.DATA]
    # Clocks of the file count milliseconds, and a life has no more time for its steps than they leave it.
    assert useful + data == pytest.approx(steps, abs=0.05)
    assert data == pytest.approx(waited, abs=0.05)
    assert report.account.goodput == useful / report.account.wall_seconds
    validations = rows_of(run.directory / "metrics.jsonl", "validation")
    assert report.account.seconds[Part.VALIDATION] == pytest.approx(
        sum(row["seconds"] for row in validations), abs=0.05
    )


def test_each_failure_says_what_was_lost_and_when_the_run_was_back(run, report):
    lost = rows_of(lost_rows_path(run.directory / "metrics.jsonl"), "train")
    first, second = report.recoveries
    lives = report.timeline.lives
    for recovery, life, then in zip((first, second), lives, lives[1:], strict=False):
        assert recovery.resumed_from == then.start_step
        assert recovery.steps_again == recovery.reached - then.start_step
        assert recovery.seconds == pytest.approx(then.first_step - life.ended)
        assert recovery.seconds >= then.first_step - then.began
        assert recovery.seconds_to_same_step >= recovery.seconds
    assert first.steps_again + second.steps_again == len(lost)
    # The row that was written again may be one of those that were thrown away later.
    rows = [row for row in [*rows_of(run.directory / "metrics.jsonl", "train"), *lost] if row["step"] >= first.reached]
    times = [datetime.fromisoformat(row["time"]).timestamp() for row in rows]
    again = min(time for time in times if time > lives[1].began)
    assert first.seconds_to_same_step == pytest.approx(again - first.time)


def test_no_sample_is_lost_or_repeated_over_kills_and_layouts(report):
    curve = report.curve
    assert (curve.first_step, curve.last_step) == (1, STEPS)
    assert (curve.samples_lost, curve.samples_repeated) == (0, 0)
    assert curve.is_whole
    assert curve.samples == STEPS * 6


def test_the_command_writes_picture_page_and_values(run, ptm, tmp_path):
    result = ptm("report", run.directory)
    assert result.code == 0
    assert "samples lost: 0, repeated: 0" in result.out
    for word in ("wall time", "lost work", "vanished", "finished", "killed without a word", "ZeRO-3"):
        assert word in result.out
    folder = run.directory / "report"
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.md").read_text()
    assert "timeline.png" in page
    assert "layout_change" in page
    values = json.loads((folder / "report.json").read_text())
    result = ptm("report", run.directory, "--json", "--out", tmp_path / "elsewhere")
    assert result.json == values
    assert sum(values["seconds"].values()) == pytest.approx(values["wall_seconds"], abs=1e-5)
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "report.json",
        "report.md",
        "timeline.png",
    ]


def test_a_live_run_has_a_report(tmp_path):
    write_data(tmp_path / "data")
    recipe = make_recipe(tmp_path, "live", **{**SECTIONS, "training": {"steps": 100_000}, "data": {"max_epochs": 1e6}})
    processes = start_run(recipe, 1)
    try:
        while rows_up_to(recipe) < 8:
            assert processes[0].exitcode is None
            time.sleep(0.01)
        report = make_report(recipe.directory)
    finally:
        processes[0].kill()
    (life,) = report.timeline.lives
    assert life.end is End.OPEN
    assert report.curve.last_step >= 8
    assert report.curve.is_whole
    assert report.account.seconds[Part.USEFUL] > 0
    assert sum(report.account.seconds.values()) == pytest.approx(report.account.wall_seconds, abs=1e-5)


def test_what_is_no_run_is_refused_in_one_sentence(ptm, tmp_path):
    result = ptm("report", tmp_path / "nothing")
    assert result.code == 2
    assert result.err == f"error: {tmp_path}/nothing is no run directory: it has no recipe.yaml; see `ptm status`\n"
    (tmp_path / "recipe.yaml").touch()
    result = ptm("report", tmp_path)
    assert result.code == 2
    assert f"{tmp_path} has nothing to report: no start is in its events.jsonl" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_folder_that_cannot_be_written_is_named(run, ptm, tmp_path):
    (tmp_path / "file").touch()
    result = ptm("report", run.directory, "--out", tmp_path / "file")
    assert result.code == 2
    assert f"cannot write the report to {tmp_path}/file" in result.err
