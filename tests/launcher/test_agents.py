"""Programs that stand for nodes, and are started again when they die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from launcher.elastic.agents import Started
from tests.launcher.processes import is_alive, wait_until


def test_a_program_that_dies_is_started_again_after_a_while(tmp_path):
    started = Started({"n1": note_and(tmp_path, "exec sleep 60"), "n2": ["sleep", "60"]}, os.environ)
    try:
        wait_until(lambda: len(starts(tmp_path)) == 1, 10)
        assert started.tend() == []
        os.kill(starts(tmp_path)[0], signal.SIGKILL)
        died: list[str] = []
        wait_until(lambda: died.extend(started.tend()) or died, 10)
        wait_until(lambda: started.tend() or len(starts(tmp_path)) == 2, 10)
        assert died == ["n1"]
        assert is_alive(starts(tmp_path)[1])
    finally:
        for program in started._programs.values():
            program.process.kill()
        started.end()


def test_one_that_always_dies_is_given_up_and_till_then_may_come(tmp_path):
    started = Started({"n1": note_and(tmp_path, "exit 3")}, os.environ)
    looks = 0
    while started.may_come():
        looks += 1
        started.tend()
        time.sleep(0.02)  # in which a program may die that nobody has looked after since
    assert looks > 1
    assert len(starts(tmp_path)) == 5
    assert started.tend() == []


def note_and(folder: Path, what: str) -> list[str]:
    """A program that notes its process id, and then does something."""
    return ["sh", "-c", f"echo $$ >> {folder}/starts; {what}"]


def starts(folder: Path) -> list[int]:
    path = folder / "starts"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []
