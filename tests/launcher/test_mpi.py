"""Ranks of a real mpirun ask MPI who they are, meet, and do not wait for one that fell."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.mpi import _answers

ROOT = Path(__file__).resolve().parents[2]
TWO_MACHINES = ("-launcher", "fork", "-hosts", "localhost,127.0.0.1", "-ppn", "1")
"""Two to mpirun; both are this one."""
MEET = """
import dataclasses, json, socket, sys, time
from pathlib import Path
from launcher.mpi import world_of_mpi
world = world_of_mpi()
if world.rank == 0:
    server = socket.create_server(("", world.master_port))
    server.settimeout(20)
    server.accept()[0].sendall(b"met")
else:
    while True:
        try:
            connection = socket.create_connection((world.master_addr, world.master_port), 5)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    assert connection.recv(3) == b"met"
Path(sys.argv[1], str(world.rank)).write_text(json.dumps(dataclasses.asdict(world)))
"""
FALL = """
import time
from launcher.mpi import world_of_mpi
if world_of_mpi().rank == 1:
    raise ValueError("wrong number")
time.sleep(40)
print("was waited for")
"""


def mpirun(program: str, folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun; pip install 'ptm-dist[mpi]'")
    command = [found, *options, "-n", "2", sys.executable, "-c", program, str(folder)]
    env = {**os.environ, **environ}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(("options", "each"), [((), 2), (TWO_MACHINES, 1)], ids=["one machine", "two machines"])
def test_ranks_know_each_other_and_meet_at_a_port_of_rank_0(options, each, tmp_path):
    ended = mpirun(MEET, tmp_path, *options)
    assert ended.returncode == 0, ended.stderr
    worlds = [json.loads((tmp_path / name).read_text()) for name in ("0", "1")]
    assert [(world["rank"], world["world_size"]) for world in worlds] == [(0, 2), (1, 2)]
    assert [world["local_rank"] for world in worlds] == ([0, 1] if each == 2 else [0, 0])
    assert {world["local_world_size"] for world in worlds} == {each}
    assert {world["master_addr"] for world in worlds} == {"127.0.0.1" if each == 2 else socket.gethostname()}
    assert len({world["master_port"] for world in worlds}) == 1


def test_a_name_of_rank_0_that_does_not_lead_there_is_passed_over(tmp_path):
    ended = mpirun(MEET, tmp_path, *TWO_MACHINES, MASTER_ADDR="no-such-machine.invalid")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "1").read_text())["master_addr"] == socket.gethostname()


def test_somebody_else_who_listens_there_is_not_taken_for_rank_0():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for word, is_taken in ((b"token", True), (b"other", False), (b"", False)):
            answer = threading.Thread(target=lambda word=word: server.accept()[0].sendall(word))
            answer.start()
            assert _answers("127.0.0.1", port, b"token") is is_taken
            answer.join()
    assert not _answers("127.0.0.1", port, b"token")


@pytest.mark.parametrize("options", [(), TWO_MACHINES], ids=["one machine", "two machines"])
def test_an_error_of_one_rank_ends_the_others(options, tmp_path):
    ended = mpirun(FALL, tmp_path, *options)
    assert ended.returncode != 0
    assert "ValueError: wrong number" in ended.stderr
    assert "was waited for" not in ended.stdout
