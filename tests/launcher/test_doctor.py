"""`ptm doctor` as a user meets it: one machine, and several nodes that are processes of this one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(rank: int, size: int, port: int, *arguments: object, hide: Path | None = None, code: Path = ROOT):
    """A node: a process that torchrun could have started, with a name of its own.

    `hide` lays an empty file system over a folder, for this node alone; `code` is the installation that it uses.
    """
    world = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURMD_NODENAME": f"n{rank}"}
    added = {name: str(value) for name, value in {**world, **meeting}.items()}
    environ = {**os.environ, **added, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    command = [sys.executable, "-m", "launcher", "doctor", *map(str, arguments)]
    if hide is not None:
        command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hide), *command]
    return subprocess.Popen(command, cwd=code, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_sound_machine_is_fit_to_train(ptm, tmp_path):
    result = ptm("doctor", "--folder", tmp_path, "--device", "cpu")
    assert result.code == 0, result.out
    assert f"{socket.gethostname()}: fit to train\n" in result.out
    assert "torch" in result.out
    assert result.err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_adds_room_for_checkpoints_and_data_that_can_be_read(ptm, workspace):
    result = ptm("doctor", workspace / "recipe.yaml", "--json")
    assert result.code == 0, result.out
    (report,) = result.json["reports"]
    details = {finding["what"]: finding for finding in report["findings"]}
    assert details["data"]["detail"] == "2 shards, and a tokenizer of 512 ids"
    assert details["arithmetic of cpu"]["detail"].startswith("exact, the same each time")
    assert report["speeds"]["cpu"] > 1e6
    assert not (workspace / "run").exists(), "looking has made a run directory"

    shutil.rmtree(workspace / "data" / "validation")
    result = ptm("doctor", workspace / "recipe.yaml")
    assert result.code == 1
    assert "no node is fit to train" in result.out
    assert f"{workspace}/data/validation: manifest.json is missing" in result.out


def test_a_disk_without_room_for_two_checkpoints_of_a_recipe_is_found(ptm, workspace, small_disk):
    # 17 million parameters: weights and two moments in float32 are 0.2 GiB, twice.
    overrides = ("model.hidden_size=512", "model.num_layers=5", f"run_dir={small_disk}/run")
    result = ptm("doctor", workspace / "recipe.yaml", *overrides)
    assert result.code == 1
    assert f"0.0 GiB free in {small_disk}/run, two checkpoints need 0.4 GiB" in result.out


def test_mistakes_are_one_message(ptm, workspace, monkeypatch):
    assert ptm("doctor", "--device", "tpu").err == "error: --device tpu: use auto, cpu or cuda\n"
    missing = ptm("doctor", workspace / "none.yaml")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert "leave out --nproc to join them" in ptm("doctor", "--nproc", 2).err


def test_two_processes_of_this_machine_measure_the_way_between_them(tmp_path):
    command = [sys.executable, "-m", "launcher", "doctor", "--nproc", "2", "--json", "--device", "cpu"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["is_sound"]
    (connection,) = found["fabric"]["connections"]
    assert (connection["first"], connection["second"], connection["failure"]) == (0, 1, None)
    assert connection["speed"] > 1e6
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_the_shared_folder_and_one_with_other_code_are_left_out(tmp_path):
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(shared)], check=False).returncode:
        pytest.skip("a mount of one process alone needs root")
    for package in ("data_pipeline", "ptm_dist", "launcher"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "ptm_dist" / "errors.py").open("a") as stream:
        stream.write("\nOTHER = True\n")
    port, arguments = free_port(), ("--folder", shared, "--device", "cpu", "--timeout", 90)
    nodes = [
        start(0, 3, port, *arguments),
        start(1, 3, port, *arguments, hide=shared),
        start(2, 3, port, *arguments, code=other),
    ]
    said = [node.communicate(timeout=180) for node in nodes]
    assert [node.returncode for node in nodes] == [1, 1, 1], said
    out = said[0][0]
    assert "bad      n1: does not see the run directory of n0, n2: mount the same file system there" in out
    assert "bad      n2: has this program's code " in out
    assert out.endswith("n0: fit to train\n")
    assert [each[0] for each in said[1:]] == ["", ""]
    assert list(shared.iterdir()) == []


def test_a_process_that_never_comes_is_named(tmp_path):
    first = start(0, 2, free_port(), "--folder", tmp_path, "--device", "cpu", "--timeout", 3, "--json")
    out, error = first.communicate(timeout=120)
    assert first.returncode == 1, error
    assert json.loads(out)["verdict"]["bad"] == {"rank 1": "rank 1 did not come"}


def test_a_first_process_that_is_not_there_is_said_by_the_others(tmp_path):
    second = start(1, 2, free_port(), "--folder", tmp_path, "--device", "cpu", "--timeout", 2)
    out, error = second.communicate(timeout=120)
    assert (second.returncode, out) == (1, "")
    assert "error: rank 1 on n1 does not reach 127.0.0.1:" in error
    assert "Traceback" not in error
