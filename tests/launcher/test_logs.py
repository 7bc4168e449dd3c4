from __future__ import annotations

import io

import pytest

from launcher.logs import Tee


@pytest.fixture
def streams():
    terminal, log = io.StringIO(), io.StringIO()
    return terminal, log, Tee(terminal, log)


def test_both_get_whole_lines(streams):
    terminal, log, tee = streams
    for text in ("first ", "line\nsecond", " line\n", "unfinished"):
        tee.write(text)
    assert terminal.getvalue() == "first line\nsecond line\nunfinished"
    assert log.getvalue() == "first line\nsecond line\n"


def test_the_log_has_no_redraws_and_no_control_sequences(streams):
    terminal, log, tee = streams
    tee.write("\x1b[?25l\x1b[32m|\x1b[0m step 1")
    tee.write("\r\x1b[2K\x1b[32m/\x1b[0m step 2")
    tee.write("\r\x1b[2Kvalidation loss 3.1\n/ step 2")
    tee.write("\r\x1b[2K\x1b[1mdone\x1b[0m\r\n")
    assert log.getvalue() == "validation loss 3.1\ndone\n"
    assert "step 1" in terminal.getvalue()


def test_print_works_on_it(streams):
    _, log, tee = streams
    print("a", "b", file=tee)
    assert log.getvalue() == "a b\n"
    assert not tee.isatty()
