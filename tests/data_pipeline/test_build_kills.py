"""Builds that are killed, at any moment and in any part, go on where they were and end with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import pytest

from data_pipeline.build import building, workplace
from data_pipeline.errors import DataError
from data_pipeline.sources import Document, read_documents
from tests.data_pipeline.builds import (
    ROOT,
    build,
    command,
    contents,
    descendants,
    environment,
    kill_all,
    small_tokenizer,
    wait_until,
)
from tests.data_pipeline.corpus_slice import write_documents, write_slice

OPTIONS = {"shard_bytes": 4_000, "deduplicate": "near"}
KILLS = 18


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    slice_ = write_slice(tmp_path_factory.mktemp("corpus"), documents=20)
    documents = [*read_documents([str(slice_)])]
    copies = [Document(f"copy of {document.key}", document.text) for document in documents[::3]]
    return write_documents(slice_, documents + copies)


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    return small_tokenizer(corpus, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def undisturbed(corpus, folder, tmp_path_factory):
    """The bytes of a build that nobody disturbs, and the seconds it takes."""
    out = tmp_path_factory.mktemp("undisturbed") / "data"
    begin = time.monotonic()
    summary = build(corpus, folder, out, **OPTIONS)
    assert summary.counts["exact_duplicate"] >= 7
    return contents(out), time.monotonic() - begin


def in_a_child(function):
    """Run a function in a forked process; its id."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


def ended(child):
    return os.waitpid(child, 0)[1]


def test_kills_at_random_moments_change_no_byte(corpus, folder, undisturbed, tmp_path):
    expected, seconds = undisturbed
    out = tmp_path / "data"
    moments = random.Random(7)
    kills = finished = 0
    while kills < KILLS:
        child = in_a_child(lambda: build(corpus, folder, out, **OPTIONS))
        time.sleep(moments.uniform(0.0, 0.5 * seconds))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(ended(child))
        if out.exists():
            assert contents(out) == expected
            finished += 1
            out.rename(tmp_path / f"finished-{finished}")
    summary = build(corpus, folder, out, **OPTIONS)
    assert not summary.reused
    assert contents(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir() if "finished" not in path.name) == ["data"]


@pytest.mark.parametrize("moment", ["publish_folder", "shutil.rmtree", "Workplace._remove"])
def test_a_kill_around_the_last_rename_leaves_all_or_nothing(
    corpus, folder, undisturbed, tmp_path, monkeypatch, moment
):
    out = tmp_path / "data"

    def die(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    def build_and_die():
        monkeypatch.setattr(f"data_pipeline.build.workplace.{moment}", die)
        build(corpus, folder, out, **OPTIONS)

    assert os.WTERMSIG(ended(in_a_child(build_and_die))) == signal.SIGKILL
    assert out.exists() == (moment != "publish_folder")
    summary = build(corpus, folder, out, **OPTIONS)
    assert summary.reused == (moment != "publish_folder")
    assert contents(out) == undisturbed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("stage", ["hashes", "shards"])
def test_a_killed_build_of_many_processes_leaves_none_and_goes_on(corpus, folder, undisturbed, tmp_path, stage):
    out = tmp_path / "data"
    options = ("--shard-bytes", 4000, "--deduplicate", "near", "--validation-fraction", 0.2)
    arguments = ("--input", corpus, "--tokenizer", folder, "--out", out, *options)
    process = subprocess.Popen(command(*arguments, "--workers", 2), cwd=ROOT, env=environment())
    records = tmp_path / "data.building" / stage
    wait_until(lambda: any(records.glob("*.json")) or process.poll() is not None)
    workers = descendants(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_alive(worker) for worker in workers))
    assert not out.exists()
    build(corpus, folder, out, workers=2, **OPTIONS)
    assert contents(out) == undisturbed[0]


def is_alive(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_finished_is_not_done_again(corpus, folder, tmp_path, monkeypatch):
    out = tmp_path / "data"

    class StopBuild(Exception):  # noqa: N818 - not an error
        pass

    def stop(progress):
        if progress.stage == "tokenising" and progress.done_bytes > progress.total_bytes / 2:
            raise StopBuild

    with pytest.raises(StopBuild):
        build(corpus, folder, out, on_progress=stop, **OPTIONS)
    root = tmp_path / "data.building"
    done = {path.name for path in (root / "shards").iterdir()}
    shards = [path for path in (root / "data").rglob("*.tar") if f"{path.name[:6]}.json" in done]
    stamps = {path: path.stat().st_mtime_ns for path in shards}
    assert 3 < len(done) < len(json.loads((root / "data" / "plan.json").read_text())["chunks"])
    read = []
    reader = building.BuildChunk.__call__
    monkeypatch.setattr(
        building.BuildChunk, "__call__", lambda self, chunk, note: read.append(chunk) or reader(self, chunk, note)
    )
    build(corpus, folder, out, **OPTIONS)
    assert not {f"{chunk:06d}.json" for chunk in read} & done
    assert all((out / path.relative_to(root / "data")).stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_a_shard_that_went_missing_is_made_again(corpus, folder, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "data"

    def stop(*arguments, **options):
        raise DataError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(workplace, "publish_folder", stop)
        with pytest.raises(DataError, match="no room"):
            build(corpus, folder, out, **OPTIONS)
    first, second = sorted((tmp_path / "data.building" / "data" / "train").glob("*.tar"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    (second.parent / "half.tar.tmp-host-1-0").write_bytes(b"of a killed writer")
    build(corpus, folder, out, **OPTIONS)
    assert contents(out) == undisturbed[0]


def test_an_interrupted_build_of_something_else_is_dropped_only_when_told_to(corpus, folder, undisturbed, tmp_path):
    out = tmp_path / "data"
    child = in_a_child(lambda: build(corpus, folder, out, **{**OPTIONS, "shard_bytes": 2_000}))
    wait_until((tmp_path / "data.building" / "data" / "plan.json").exists)
    os.kill(child, signal.SIGKILL)
    ended(child)
    with pytest.raises(DataError, match=r"interrupted build of shard_bytes=2000 instead of 4000; --overwrite"):
        build(corpus, folder, out, **OPTIONS)
    build(corpus, folder, out, overwrite=True, **OPTIONS)
    assert contents(out) == undisturbed[0]


def test_a_second_build_of_the_same_folder_is_told_so(corpus, folder, undisturbed, tmp_path):
    out = tmp_path / "data"
    refused = []

    def try_another(progress):
        if not refused:
            with pytest.raises(DataError, match=r"another build of .*data is at work") as caught:
                build(corpus, folder, out, **OPTIONS)
            refused.append(caught)

    build(corpus, folder, out, on_progress=try_another, **OPTIONS)
    assert refused
    assert contents(out) == undisturbed[0]


def test_an_interrupted_overwrite_keeps_the_old_folder_until_the_new_one_is_complete(
    corpus, folder, undisturbed, tmp_path
):
    out = tmp_path / "data"
    build(corpus, folder, out, shard_bytes=50_000)
    before = contents(out)
    child = in_a_child(lambda: build(corpus, folder, out, overwrite=True, **OPTIONS))
    wait_until(lambda: any((tmp_path / "data.building").rglob("*.tar")))
    os.kill(child, signal.SIGKILL)
    ended(child)
    assert contents(out) == before
    build(corpus, folder, out, overwrite=True, **OPTIONS)
    assert contents(out) == undisturbed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_kill_all_reaches_grandchildren():
    process = subprocess.Popen(["sh", "-c", "sleep 60 & wait"])
    wait_until(lambda: len(descendants(process.pid)) == 1)
    (child,) = descendants(process.pid)
    kill_all(process)
    wait_until(lambda: not is_alive(child))
