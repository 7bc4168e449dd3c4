from __future__ import annotations

import os
import time

import pytest

from data_pipeline.errors import DataError
from data_pipeline.processes import run_on_processes


def negate(item, note):
    note(-item)


def die(item, note):
    os._exit(3)


def divide(item, note):
    note(1 / item)


class UnsentError(Exception):
    """An error that cannot be sent to another process."""

    def __init__(self, one, two):
        super().__init__("not sent")


def fail_unsent(item, note):
    raise UnsentError(1, 2)


def wait_for_the_last(item, note):
    number, folder = item
    if number == 8:
        (folder / "done").touch()
    while number == 1 and not (folder / "done").exists():
        time.sleep(0.01)
    note(number)


def wait_long(item, note):
    note(item)
    time.sleep(600)


def test_every_item_is_worked_on_once_and_all_notes_arrive():
    notes = []
    run_on_processes(negate, range(9), 2, notes.append)
    assert sorted(notes) == [-item for item in range(8, -1, -1)]


def test_a_free_worker_takes_what_is_left(tmp_path):
    notes = []
    run_on_processes(wait_for_the_last, [(number, tmp_path) for number in (1, 2, 4, 6, 8)], 2, notes.append)
    assert sorted(notes) == [1, 2, 4, 6, 8]
    assert [number for number in notes if number != 1] == [2, 4, 6, 8]


def test_nothing_to_do_starts_nothing():
    run_on_processes(die, [], 2, print)


def test_a_killed_worker_is_told_in_one_sentence():
    with pytest.raises(DataError, match="a worker process was killed"):
        run_on_processes(die, [3, 3, 3], 2, print)


def test_an_error_of_the_function_reaches_the_caller_with_its_place():
    with pytest.raises(ZeroDivisionError) as caught:
        run_on_processes(divide, [1, 0], 2, lambda note: None)
    assert "in divide" in str(caught.value.__cause__)


def test_an_error_that_cannot_be_sent_is_told_as_text():
    with pytest.raises(RuntimeError, match="UnsentError: not sent"):
        run_on_processes(fail_unsent, [1, 2], 2, print)


def test_an_error_of_the_listener_ends_the_workers_at_once():
    def listen(note):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_processes(wait_long, [1, 2, 3], 2, listen)
