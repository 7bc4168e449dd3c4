"""The network between real processes over real sockets: sound, slowed down, or silent."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from launcher.doctor.compare import Verdict
from launcher.doctor.diagnosis import judge_network
from launcher.doctor.fabric import Fabric, measure
from launcher.doctor.pairs import Connection
from launcher.doctor.roll import Roll, SilenceError
from tests import distributed  # noqa: F401  its list of preloaded modules comes first

RANKS = 3
NODES = {rank: f"n{rank}" for rank in range(RANKS)}
_context = multiprocessing.get_context("forkserver")


def _work(rank: int, port: int, folder: Path, patience: float, groups: list[list[int]]) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, RANKS, rank == 0, wait_for_workers=False, timeout=timedelta(seconds=60))
    Roll(store, rank, RANKS, 60.0).gather("ready", None)
    roll = Roll(store, rank, RANKS, patience)
    roll.tell("begin")
    (folder / f"ready{rank}").touch()
    fabric = measure(store, roll, groups, torch.device("cpu"), patience)
    if rank == 0:
        (folder / "lost.json").write_text(json.dumps(roll.lost))
        torch.save(fabric, folder / "fabric")
    os._exit(0)


@contextmanager
def processes(folder: Path, patience: float, groups: list[list[int]]) -> Iterator[list]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        _context.Process(target=_work, args=(rank, port, folder, patience, groups), daemon=True)
        for rank in range(RANKS)
    ]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def measured(
    folder: Path, patience: float = 30.0, meddle: Callable[[int], None] = lambda pid: None
) -> tuple[Fabric, Verdict]:
    """What three processes find while somebody meddles with the last one."""
    groups = [[0], [1], [2]]
    with processes(folder, patience, groups) as started:
        meddling = threading.Thread(target=meddle, args=(started[-1].pid,), daemon=True)
        meddling.start()
        started[0].join(120)
        assert started[0].exitcode == 0
    meddling.join()
    lost = {int(rank): call for rank, call in json.loads((folder / "lost.json").read_text()).items()}
    fabric = torch.load(folder / "fabric", weights_only=False)
    return fabric, judge_network(Verdict(tuple(NODES.values()), {}, ()), fabric, NODES, lost)


def test_equal_processes_measure_every_connection_and_blame_nobody_as_cut_off(tmp_path):
    fabric, verdict = measured(tmp_path)
    assert [(each.first, each.second, each.failure) for each in fabric.connections] == [
        (0, 1, None),
        (0, 2, None),
        (1, 2, None),
    ]
    assert fabric.failure is None
    assert fabric.meeting is not None
    assert [each.bytes for each in fabric.reductions] == [1 << 10, 1 << 20, 16 << 20]
    # Another process of this machine may slow one of them down; none is silent.
    assert not any("exchange messages" in reason for reason in verdict.bad.values())


def keep_slow(pid: int) -> None:
    """Let a process run for 20 of every 220 milliseconds, until it is gone."""
    running = True
    try:
        while running:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)
            running = Path(f"/proc/{pid}").exists()
    except ProcessLookupError:
        return


def test_a_slowed_process_is_named_and_the_others_are_not(tmp_path):
    fabric, verdict = measured(tmp_path, meddle=keep_slow)
    assert fabric.failure is None
    assert verdict.good == ("n0", "n1"), fabric.connections
    assert verdict.bad["n2"].startswith("the connections of rank 2 have ")
    assert verdict.bad["n2"].endswith("of the usual speed")


def test_a_process_that_stops_is_named_and_the_others_finish(tmp_path):
    def stop(pid: int) -> None:
        while not (tmp_path / "ready2").exists():
            time.sleep(0.002)
        os.kill(pid, signal.SIGSTOP)

    fabric, verdict = measured(tmp_path, patience=2.0, meddle=stop)
    assert verdict.good == ("n0", "n1")
    assert verdict.bad["n2"] in (
        "rank 2 did not answer while it exchanged messages with another one",
        "rank 2 did not answer while all summed",
    )
    pairs = {(each.first, each.second): each.failure for each in fabric.connections}
    assert pairs[0, 1] is None


def _report_to_nobody(port: int, folder: Path) -> None:
    store = TCPStore("127.0.0.1", port, 2, False, wait_for_workers=False, timeout=timedelta(seconds=60))
    try:
        Roll(store, 1, 2, 0.5).gather("call", 7)
    except SilenceError as error:
        (folder / "error").write_text(str(error))


@pytest.fixture
def store():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False, timeout=timedelta(seconds=60))


def test_a_first_process_that_says_nothing_is_not_waited_for_for_ever(store, tmp_path):
    process = _context.Process(target=_report_to_nobody, args=(store.port, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "error").read_text() == "rank 0 has not answered for 2 s"


def test_who_comes_too_late_is_told_and_what_it_says_does_not_count(store):
    first, late = Roll(store, 0, 2, 0.2), Roll(store, 1, 2, 0.2)
    assert first.gather("call", "a") == {0: "a"}
    assert (list(first.present), first.lost) == ([0], {1: "call"})
    with pytest.raises(SilenceError, match="rank 1 came too late"):
        late.gather("call", "b")
    assert first.gather("next", "c") == {0: "c"}


def test_processes_of_one_node_are_named_by_rank():
    fabric = Fabric("cpu", (Connection(0, 1, None, None, "refused"), Connection(0, 2, None, None, "refused")))
    verdict = judge_network(Verdict(("n",), {}, ()), fabric, dict.fromkeys(range(3), "n"), {3: "hello"})
    assert verdict.bad["n"] == "rank 0 cannot exchange messages with rank 1 on n, rank 2 on n"
    assert verdict.bad["rank 3"] == "rank 3 did not come"


@pytest.mark.parametrize(("device", "share", "is_bad"), [("cpu", 0.4, False), ("cpu", 0.2, True), ("cuda", 0.4, True)])
def test_what_a_busy_cpu_does_to_sockets_is_a_warning_and_on_gpus_a_fault(device, share, is_bad):
    pairs = {(0, 1): 1e9, (0, 2): share * 1e9, (1, 2): share * 1e9}
    fabric = Fabric(device, tuple(Connection(*pair, speed, 1e-5) for pair, speed in pairs.items()))
    verdict = judge_network(Verdict(tuple(NODES.values()), {}, ()), fabric, NODES, {})
    assert list(verdict.bad) == (["n2"] if is_bad else [])
    assert list(verdict.warnings) == ([] if is_bad else ["n2: the connections of rank 2 have 40% of the usual speed"])
