"""Builds by the ranks of an MPI launch: the same bytes as one process, and one message when something is wrong."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.data_pipeline.builds import (
    ROOT,
    build,
    command,
    contents,
    environment,
    kill_all,
    run,
    small_tokenizer,
    wait_until,
)
from tests.data_pipeline.corpus_slice import write_slice

OPTIONS = ("--shard-bytes", 10_000, "--validation-fraction", 0.2, "--deduplicate", "near")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_slice(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    return small_tokenizer(corpus, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def alone(corpus, folder, tmp_path_factory):
    """The bytes that one process writes."""
    out = tmp_path_factory.mktemp("alone") / "data"
    build(corpus, folder, out, shard_bytes=10_000, deduplicate="near")
    return contents(out)


def arguments(corpus, folder, out):
    return ("--input", corpus, "--tokenizer", folder, "--out", out, *OPTIONS)


@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_ranks_writes_the_same_bytes(corpus, folder, alone, tmp_path, ranks):
    result = run(command(*arguments(corpus, folder, tmp_path / "data"), "--json", ranks=ranks))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert json.loads(result.stdout)["documents_read"] == 40
    assert contents(tmp_path / "data") == alone
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_killed_ranks_are_continued_by_another_number_of_ranks(corpus, folder, alone, tmp_path):
    out = tmp_path / "data"
    launch = subprocess.Popen(command(*arguments(corpus, folder, out), ranks=3), cwd=ROOT, env=environment())
    wait_until(lambda: (tmp_path / "data.building" / "hashes").exists() or launch.poll() is not None)
    time.sleep(0.05)
    kill_all(launch)
    assert not out.exists()
    result = run(command(*arguments(corpus, folder, out), ranks=2))
    assert result.returncode == 0, result.stderr
    assert contents(out) == alone


def test_what_one_rank_cannot_read_ends_all_ranks_with_one_message(corpus, folder, tmp_path):
    lines = corpus.read_text().splitlines(keepends=True)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(4):
        (parts / f"{number}.jsonl").write_text("".join(lines[number::4]) + ("{broken\n" if number == 2 else ""))
    result = run(command(*arguments(parts / "*.jsonl", folder, tmp_path / "data"), ranks=3))
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "2.jsonl" in line
    assert "not valid JSON" in line
    assert " (rank " in line
    assert not (tmp_path / "data").exists()


def test_what_the_first_rank_finds_wrong_is_told_once(folder, tmp_path):
    result = run(command(*arguments(tmp_path / "no.jsonl", folder, tmp_path / "data"), ranks=2))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "no such file" in line
    assert list(tmp_path.iterdir()) == []


def test_processes_of_ranks_are_refused(corpus, folder, tmp_path):
    result = run(command(*arguments(corpus, folder, tmp_path / "data"), "--workers", 2, ranks=2))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "leave out --workers 2" in line
