from __future__ import annotations

import gzip
import json
import re

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ptm_dist.training.operation_times import operations, table, total
from ptm_dist.training.trainer import DivergenceError
from tests.ptm_dist.runs import events, losses, make_recipe, run_alone, run_processes, write_data


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path


def trace_events(recipe, name):
    with gzip.open(recipe.directory / "profile" / name) as stream:
        return json.load(stream)["traceEvents"]


def calls(text, operation):
    rows = re.findall(r"^ *[\d.]+% +[\d.]+ +([\d.e+]+)  (\S+)", text, re.MULTILINE)
    return sum(float(count) for count, name in rows if name == operation)


def test_asked_for_steps_are_recorded_in_a_trace_and_a_table(folder, capsys):
    recipe = make_recipe(folder, "a", logging={"profile": True, "profile_start": 4, "profile_steps": 2})
    run_alone(recipe)
    files = {path.name for path in (recipe.directory / "profile").iterdir()}
    assert files == {"trace-step5-rank0.json.gz", "top-operations-step5-rank0.txt"}
    text = (recipe.directory / "profile" / "top-operations-step5-rank0.txt").read_text()
    assert text.startswith("steps 5-6 on rank 0, CPU")
    recorded = [event["name"] for event in trace_events(recipe, "trace-step5-rank0.json.gz") if event.get("ph") == "X"]
    assert sum(name.startswith("ProfilerStep") for name in recorded) == 2
    # 3 micro-batches with 5 norms a step, and the validation after step 4.
    assert recorded.count("aten::native_layer_norm") == 2 * calls(text, "aten::native_layer_norm") > 2 * 3 * 5
    assert [(row["step"], row["steps"], row["ranks"]) for row in events(recipe, "profile")] == [(6, 2, [0])]
    assert f"profile of steps 5-6 in {recipe.directory}/profile: trace-step5-rank0.json.gz" in capsys.readouterr().out


def test_recording_changes_no_bit_and_happens_only_if_asked_for(folder):
    plain, recorded = make_recipe(folder, "plain"), make_recipe(folder, "recorded", logging={"profile": True})
    run_alone(plain)
    run_alone(recorded)
    assert losses(plain) == losses(recorded)
    assert not (plain.directory / "profile").exists()
    assert events(plain, "profile") == []


def test_a_run_that_ends_among_the_steps_writes_those_it_made(folder):
    recipe = make_recipe(folder, "a", logging={"profile": True, "profile_start": 10, "profile_steps": 5})
    run_alone(recipe)
    assert [(row["step"], row["steps"]) for row in events(recipe, "profile")] == [(12, 2)]
    names = [event["name"] for event in trace_events(recipe, "trace-step11-rank0.json.gz") if event.get("ph") == "X"]
    assert sum(name.startswith("ProfilerStep") for name in names) == 2


def test_a_run_that_ends_before_says_so(folder, capsys):
    recipe = make_recipe(folder, "a", logging={"profile": True, "profile_start": 12})
    run_alone(recipe)
    assert not (recipe.directory / "profile").exists()
    assert "nothing was profiled: this process made 12 steps" in capsys.readouterr().out


def test_only_named_ranks_record(folder):
    recipe = make_recipe(folder, "a", logging={"profile": True, "profile_ranks": [1, 7]})
    assert run_processes(recipe, 2) == [0, 0]
    assert [path.name for path in (recipe.directory / "profile").glob("trace*")] == ["trace-step6-rank1.json.gz"]
    assert [row["ranks"] for row in events(recipe, "profile")] == [[1]]


def test_after_a_failure_among_the_steps_this_process_may_record_again(folder):
    recipe = make_recipe(
        folder,
        "a",
        logging={"profile": True, "profile_start": 1, "profile_steps": 9},
        optimizer={"learning_rate": 1e200},
    )
    with pytest.raises(DivergenceError):
        run_alone(recipe)
    assert not (recipe.directory / "profile").exists()
    with profile(activities=[ProfilerActivity.CPU]) as again:
        torch.zeros(3).add(1)
    assert any(event.key == "aten::add" for event in again.key_averages())


def test_the_table_has_a_row_for_each_shape_and_shares_of_the_whole():
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for _ in range(4):
            torch.randn(64, 32) @ torch.randn(32, 16)
            torch.randn(8, 4) @ torch.randn(4, 2)
    spent = operations(profiled, 2, on_device=False)
    products = {each.shapes: each.calls for each in spent if each.name == "aten::mm"}
    assert products == {"64x32, 32x16": 2.0, "8x4, 4x2": 2.0}
    assert [each.milliseconds for each in spent] == sorted((each.milliseconds for each in spent), reverse=True)
    shares = [float(share) for share in re.findall(r"^ *([\d.]+)%", table("All", spent, 3), re.MULTILINE)]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100.0, abs=0.2)  # four roundings to a tenth
    # Own times add up to the time of what was called first.
    outermost = sum(event.cpu_time_total for event in profiled.events() if event.cpu_parent is None)
    assert total(spent) * 2 == pytest.approx(outermost / 1000, rel=1e-6)
