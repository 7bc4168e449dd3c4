from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.processes import wait_until, worker_pids

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    ("tokenizer", "train"),
    ("data", "corpus", "stdlib"),
    ("data", "build"),
    ("data", "show"),
    ("data", "verify"),
    ("train",),
    ("generate",),
    ("checkpoint", "list"),
    ("checkpoint", "show"),
    ("submit",),
    ("status",),
    ("logs",),
    ("stop",),
    ("report",),
    ("demo",),
]


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [loss for row in rows if row["kind"] == "train" for loss in row["losses"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_that_names_it(ptm, command):
    result = ptm(*command, "--help")
    assert result.code == 0
    assert f"ptm {' '.join(command)}" in result.out.partition("Example")[2]


def test_help_imports_no_heavy_library():
    program = (
        "import sys, launcher.cli; print([name for name in ('torch', 'numpy', 'pydantic_core') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "torch" not in result.stdout
    assert "numpy" not in result.stdout


@pytest.mark.parametrize(
    "arguments", [("trian",), ("train",), ("train", "x.yaml", "--nproc", "0"), ("data", "show", "--step")]
)
def test_wrong_usage_ends_with_2(ptm, arguments):
    result = ptm(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_an_interrupt_outside_a_run_ends_with_130(ptm, workspace, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("ptm_dist.recipe.loading.load_recipe", interrupted)
    result = ptm("train", workspace / "recipe.yaml")
    assert result.code == 130
    assert "Traceback" not in result.err


def test_print_config_is_a_recipe_that_loads_to_the_same(ptm, workspace):
    recipe = workspace / "recipe.yaml"
    first = ptm("train", recipe, "--print-config", "optimizer.learning_rate=0.5")
    assert first.code == 0
    (workspace / "resolved.yaml").write_text(first.out)
    assert ptm("train", workspace / "resolved.yaml", "--print-config").out == first.out
    assert "learning_rate: 0.5" in first.out


def test_dry_run_starts_nothing_and_takes_its_world_size_from_nproc_or_the_environment(ptm, workspace, monkeypatch):
    recipe = workspace / "recipe.yaml"
    assert ptm("train", recipe, "--dry-run", "--json", "--nproc", 4).json["layout"]["world_size"] == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ptm("train", recipe, "--dry-run", "--json").json["layout"]["world_size"] == 2
    assert not (workspace / "run").exists()


def test_a_run_alone_trains_continues_and_says_when_there_is_nothing_to_do(ptm, workspace):
    recipe, run = workspace / "recipe.yaml", workspace / "run"
    first = ptm("train", recipe, "launch.stop_at_step=3")
    assert first.code == 0, first.err
    assert "stopped at step 3 of 6" in first.out
    assert "the same command without it continues" in first.out
    second = ptm("train", recipe, "--json")
    assert (second.code, second.json["start_step"], second.json["step"]) == (0, 3, 6)
    assert "step 6/6" in second.err
    assert len(losses(run)) == 6
    assert "nothing to do" in ptm("train", recipe).out

    listed = ptm("checkpoint", "list", run, "--json").json
    assert [entry["step"] for entry in listed] == [3, 6]
    assert "step-00000006" in ptm("checkpoint", "list", run).out
    shown = ptm("checkpoint", "show", run, "--verify", "--json").json
    assert shown["step"] == 6
    assert shown["manifest"]["layout"] == "single process"
    assert "all sound" in ptm("checkpoint", "show", run, "--verify").out

    generated = ptm(
        "generate", "--checkpoint", run, "--prompt", "Return", "--max-new-tokens", 5, "--samples", 2, "--json"
    )
    assert generated.code == 0, generated.err
    assert len(generated.json["texts"]) == 2
    assert all(text.startswith("Return") for text in generated.json["texts"])


def test_local_processes_and_torchrun_compute_the_same_losses_as_a_single_process(ptm, workspace):
    recipe = workspace / "recipe.yaml"
    alone = ptm("train", recipe, f"run_dir={workspace}/alone")
    assert alone.code == 0, alone.err
    local = ptm("train", recipe, f"run_dir={workspace}/local", "layout.tensor_parallel=2", "--nproc", 2, "--json")
    assert local.code == 0, local.err
    assert local.json["step"] == 6
    assert "tensor parallel 2" in local.json["layout"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "launcher"]
    joined = subprocess.run(
        [*command, "train", str(recipe), f"run_dir={workspace}/joined", "layout.zero_stage=3"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert joined.returncode == 0, joined.stderr
    assert joined.stdout.count("finished: step 6 of 6") == 1
    expected = losses(workspace / "alone")
    for run in ("local", "joined"):
        assert losses(workspace / run) == pytest.approx(expected, abs=1e-4)


def test_a_killed_rank_is_restarted_and_the_run_ends_as_if_undisturbed(ptm, workspace):
    recipe, run, calm = workspace / "recipe.yaml", workspace / "run", workspace / "calm"
    steps = (
        "training.steps=120",
        "data.max_epochs=1000",
        "evaluation.every=0",
        "checkpoint.every=10",
        "layout.zero_stage=3",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", str(recipe), "--nproc", "2", *steps, "launch.max_restarts=1"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (run / "checkpoints").is_dir() and any((run / "checkpoints").glob("step-*")))
    os.kill(worker_pids(run / "logs")[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "starting again (0 more times without a new step) after: rank 1 (in phase " in err
    assert "was killed by SIGKILL" in err
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    lives = [event for event in events if event["event"] in ("start", "restart", "finish")]
    assert [event["event"] for event in lives] == ["start", "restart", "start", "finish"]
    assert lives[2]["step"] in range(10, 120, 10)
    undisturbed = ptm("train", recipe, "--nproc", 2, *steps, f"run_dir={calm}")
    assert undisturbed.code == 0, undisturbed.err
    assert losses(run) == losses(calm)
    assert len(losses(run)) == 120


def test_ctrl_c_checkpoints_and_the_same_command_continues(ptm, workspace):
    recipe, run = workspace / "recipe.yaml", workspace / "run"
    steps = ("training.steps=100000", "data.max_epochs=100000", "evaluation.every=0", "checkpoint.every=0")
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", str(recipe), "--nproc", "2", *steps],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (run / "metrics.jsonl").exists() and losses(run))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    assert "the same command continues" in out
    stopped_at = int(out.rpartition("stopped at step ")[2].split()[0])
    assert [entry["step"] for entry in ptm("checkpoint", "list", run, "--json").json] == [stopped_at]
    # Continues in a single process just as well.
    again = ptm("train", recipe, *steps, f"launch.stop_at_step={stopped_at + 1}", "--json")
    assert again.code == 0, again.err
    assert (again.json["start_step"], again.json["step"]) == (stopped_at, stopped_at + 1)


def test_shown_samples_of_all_ranks_make_the_global_batch(ptm, workspace):
    recipe = workspace / "recipe.yaml"
    whole = ptm("data", "show", recipe, "--step", 2, "--json").json
    assert [sample["counter"] for sample in whole] == [4, 5, 6, 7]
    for size in (2, 3):
        parts = [
            ptm("data", "show", recipe, "--step", 2, "--rank", f"{rank}/{size}", "--json").json for rank in range(size)
        ]
        assert [sample for part in parts for sample in part] == whole
    assert whole[0]["text"] in ptm("data", "show", recipe, "--step", 2).out


def test_sound_shards_are_verified(ptm, workspace):
    result = ptm("data", "verify", workspace / "data")
    assert result.code == 0
    assert result.out.count(": sound;") == 2
    assert ptm("data", "verify", workspace / "data", "--json").json["problems"] == []


def test_nproc_inside_a_world_is_refused(ptm, workspace, monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "MASTER_ADDR": "h", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    result = ptm("train", workspace / "recipe.yaml", "--nproc", 2)
    assert result.code == 2
    assert "already rank 1 of 4 started by torchrun; leave out --nproc" in result.err
