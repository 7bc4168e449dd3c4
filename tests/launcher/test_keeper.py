"""The keeper of an agent in a Slurm job, whose `scontrol` only notes that it was called."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.elastic.address import Address
from launcher.elastic.keeper import APART, REQUEUE_VARIABLE, requeue_job

_SCONTROL = """#!/bin/sh
echo "$@" >> {asked}
if [ "$(grep -c requeue {asked})" -ge 2 ]; then echo JobState=PENDING Restarts=1; exit; fi
echo JobState=RUNNING Restarts=0
"""
"""Does what it is asked to when it is asked for the second time."""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Environment of a job that goes back to the queue by itself; what is asked of Slurm is in the file `asked`."""
    programs = tmp_path / "programs"
    programs.mkdir()
    scontrol = programs / "scontrol"
    scontrol.write_text(_SCONTROL.format(asked=tmp_path / "asked"))
    scontrol.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, REQUEUE_VARIABLE: "1", "SLURM_JOB_ID": "7"}


def keeper(logs: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "launcher.elastic.keeper", str(logs), "--node", "n2"]
    return subprocess.Popen(command, env=environment)


def test_a_node_without_the_run_directory_leaves_the_job_to_the_others(tmp_path, slurm):
    process = keeper(tmp_path / "not mounted" / "logs", slurm)
    assert process.wait(120) == APART
    assert not (tmp_path / "asked").exists()


def test_an_agent_that_was_let_go_comes_back_as_long_as_there_is_a_coordinator(tmp_path, slurm):
    said = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        Address("127.0.0.1", server.getsockname()[1], "token").write(tmp_path)
        process = keeper(tmp_path, slurm)
        for answer in (None, None, "bye"):
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                said.append(json.loads(lines.readline())["kind"])
                if answer is not None:
                    connection.sendall(json.dumps({"kind": answer}).encode() + b"\n")
                    lines.read()
        assert process.wait(60) == 0
    assert said == ["hello", "returning", "hello"]
    assert not (tmp_path / "asked").exists()


def test_a_job_without_a_coordinator_goes_back_to_the_queue_however_often_slurm_must_be_asked(
    tmp_path, slurm, monkeypatch
):
    monkeypatch.setattr("launcher.elastic.keeper._SCRIPT_SECONDS", 0.01)
    monkeypatch.setenv("PATH", slurm["PATH"])
    requeue_job(slurm, tmp_path, "n2")
    show = "--oneliner show job 7"
    assert (tmp_path / "asked").read_text().splitlines() == [show, "requeue 7", show, "requeue 7", show]
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert (event["event"], event["job"], event["node"]) == ("requeue", 7, "n2")
