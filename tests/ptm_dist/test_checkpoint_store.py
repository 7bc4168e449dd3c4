from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ptm_dist.checkpoint.retention import prune
from ptm_dist.checkpoint.store import (
    CheckpointInfo,
    CheckpointStore,
    Description,
    best,
    latest,
    list_checkpoints,
    read_checkpoint,
    sweep,
    verify,
)
from ptm_dist.errors import CheckpointError
from ptm_dist.parallel.control import ALONE, control_group
from ptm_dist.parallel.shards import LocalShard
from tests.distributed import run_distributed

_fork = multiprocessing.get_context("fork")


def description(step: int, loss: float | None = None) -> Description:
    return Description(
        step=step,
        samples=8 * step,
        recipe={},
        recipe_fingerprint="r",
        model_fingerprint="m",
        layout="single process",
        data_fingerprint="d",
        metrics={} if loss is None else {"validation_loss": loss},
        torch_version=torch.__version__,
        world_size=1,
        saved_at="2026-01-01T00:00:00+00:00",
    )


def state(value: float, elements: int = 1000) -> dict[str, LocalShard]:
    return {"model.w": LocalShard(torch.full((elements,), value), (elements,), (0,))}


def save(directory: Path, step: int, loss: float | None = None) -> CheckpointInfo:
    return CheckpointStore(directory, ALONE).save(state(float(step)), description(step, loss))


def load(directory: Path, info: CheckpointInfo) -> float:
    loaded = state(-1.0)
    CheckpointStore(directory, ALONE).load(info, loaded)
    return loaded["model.w"].local.unique().item()


def data_file(info: CheckpointInfo) -> Path:
    return info.path / "__0_0.distcp"


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_saved_checkpoint_is_listed_verified_and_loaded(tmp_path):
    info = save(tmp_path, 100, 3.5)
    assert info.path == tmp_path / "step-00000100"
    assert list_checkpoints(tmp_path) == [info] == [read_checkpoint(info.path)]
    assert verify(info.path) == []
    assert load(tmp_path, info) == 100.0
    assert (info.manifest.samples, info.validation_loss) == (800, 3.5)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000100"]


def test_latest_and_best_are_by_step_and_by_validation_loss(tmp_path):
    for step, loss in ((100, 3.0), (200, 2.0), (300, None), (1000, 2.5)):
        save(tmp_path, step, loss)
    assert latest(tmp_path).step == 1000
    assert best(tmp_path).step == 200


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    for step, loss in ((100, 3.0), (200, 2.0), (300, 2.5), (400, None), (500, 2.6)):
        save(tmp_path, step, loss)
    deleted = prune(tmp_path, keep_last=2)
    assert [path.name for path in deleted] == ["step-00000100", "step-00000300"]
    assert [info.step for info in list_checkpoints(tmp_path)] == [200, 400, 500]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "missing file", "short file"])
def test_a_directory_that_its_manifest_does_not_vouch_for_is_never_chosen(tmp_path, damage):
    save(tmp_path, 100)
    info = save(tmp_path, 200)
    manifest = info.path / "manifest.json"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:200])
    elif damage == "missing file":
        data_file(info).unlink()
    else:
        os.truncate(data_file(info), 100)
    assert latest(tmp_path).step == 100
    assert len(verify(info.path)) == 1
    with pytest.raises(CheckpointError, match="step-00000200"):
        read_checkpoint(info.path)


def test_a_flipped_bit_makes_loading_fall_back_to_the_checkpoint_before_and_says_so(tmp_path):
    save(tmp_path, 100)
    flip_bit(data_file(save(tmp_path, 200)))
    told = []
    info = CheckpointStore(tmp_path, ALONE).newest_sound(lambda path, problem: told.append((path, problem)))
    assert info.step == 100
    assert told[0][0].name == "step-00000200"
    assert "__0_0.distcp is damaged" in told[0][1]


def test_a_damaged_checkpoint_no_longer_counts_as_one_of_the_newest(tmp_path):
    save(tmp_path, 100)
    flip_bit(data_file(save(tmp_path, 200)))
    CheckpointStore(tmp_path, ALONE).newest_sound(lambda path, problem: None)
    save(tmp_path, 150)
    prune(tmp_path, keep_last=1)
    assert [info.step for info in list_checkpoints(tmp_path)] == [150]
    assert load(tmp_path, latest(tmp_path)) == 150.0


def test_no_checkpoint_at_all_is_a_fresh_start_and_only_damaged_ones_are_an_error(tmp_path):
    store = CheckpointStore(tmp_path, ALONE)
    assert store.newest_sound(lambda path, problem: None) is None
    flip_bit(data_file(save(tmp_path, 100)))
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* can be used"):
        store.newest_sound(lambda path, problem: None)


def test_a_checkpoint_is_never_overwritten(tmp_path):
    info = save(tmp_path, 100)
    with pytest.raises(CheckpointError, match="step-00000100 exists already"):
        save(tmp_path, 100)
    assert verify(info.path) == []
    assert len(list(tmp_path.iterdir())) == 1


def test_a_manifest_of_a_later_format_is_refused_by_number(tmp_path):
    info = save(tmp_path, 100)
    path = info.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2, "checksum": ""}))
    with pytest.raises(CheckpointError, match="format 2; this version reads format 1"):
        read_checkpoint(info.path)


def save_for_ever(directory: str) -> None:
    store = CheckpointStore(Path(directory), ALONE)
    for step in range(latest(Path(directory)).step + 1, 10_000):
        store.save(state(float(step), 300_000), description(step))
        prune(Path(directory), keep_last=1)


def test_kill_9_at_any_moment_leaves_a_sound_newest_checkpoint(tmp_path):
    CheckpointStore(tmp_path, ALONE).save(state(1.0, 300_000), description(1))
    interrupted = 0
    for kill in range(24):
        process = _fork.Process(target=save_for_ever, args=(str(tmp_path),))
        process.start()
        time.sleep(0.02 + 0.003 * kill)
        process.kill()
        process.join()
        interrupted += len(list(tmp_path.glob(".*")))
        info = latest(tmp_path)
        assert verify(info.path) == []
        loaded = state(-1.0, 300_000)
        CheckpointStore(tmp_path, ALONE).load(info, loaded)
        assert loaded["model.w"].local.unique().item() == float(info.step)
        sweep(tmp_path)
        assert list(tmp_path.glob(".*")) == []
    assert interrupted > 0


def save_too_large(directory: str, results: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        CheckpointStore(Path(directory), ALONE).save(state(2.0, 300_000), description(2))
    except CheckpointError as error:
        Path(results).write_text(str(error))


def test_a_file_that_may_not_grow_ends_in_one_message_and_leaves_no_trace(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    save(checkpoints, 1)
    process = _fork.Process(target=save_too_large, args=(str(checkpoints), str(tmp_path / "message")))
    process.start()
    process.join()
    assert "cannot write a checkpoint to" in (tmp_path / "message").read_text()
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000001"]


def test_a_full_disk_ends_in_one_message_and_leaves_the_checkpoint_before(small_disk):
    save(small_disk, 1)
    with pytest.raises(CheckpointError, match=r"disk of .* is full.*goes on from the last one"):
        CheckpointStore(small_disk, ALONE).save(state(2.0, 1_000_000), description(2))
    assert [path.name for path in small_disk.iterdir()] == ["step-00000001"]
    assert load(small_disk, latest(small_disk)) == 1.0


def shard(rank: int, size: int, value: float) -> dict[str, LocalShard]:
    return {"model.w": LocalShard(torch.full((10,), value), (10 * size,), (10 * rank,))}


def save_by_all(directory: str) -> list[str]:
    rank, size = dist.get_rank(), dist.get_world_size()
    store = CheckpointStore(Path(directory), control_group())
    info = store.save(shard(rank, size, float(rank)), description(100))
    return sorted(info.manifest.files)


def choose_by_all(directory: str) -> tuple[int, list[str], float]:
    rank, size = dist.get_rank(), dist.get_world_size()
    store = CheckpointStore(Path(directory), control_group())
    told = []
    info = store.newest_sound(lambda path, problem: told.append(problem))
    loaded = shard(rank, size, -1.0)
    store.load(info, loaded)
    return info.step, told, loaded["model.w"].local.unique().item()


def test_all_ranks_agree_on_what_was_saved_and_what_is_sound(tmp_path):
    files = [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert run_distributed(save_by_all, 2, str(tmp_path)) == [files, files]
    broken = tmp_path / "step-00000200"
    (tmp_path / "step-00000100").rename(tmp_path / "keep")
    run_distributed(save_by_all, 2, str(tmp_path))
    (tmp_path / "step-00000100").rename(broken)
    (tmp_path / "keep").rename(tmp_path / "step-00000100")
    flip_bit(broken / "__1_0.distcp")
    results = run_distributed(choose_by_all, 2, str(tmp_path))
    assert [(step, loaded) for step, _, loaded in results] == [(100, 0.0), (100, 1.0)]
    assert results[0][1] == results[1][1]
    assert "__1_0.distcp is damaged" in results[0][1][0]


def fail_on_one(directory: str) -> str:
    if dist.get_rank() == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
    try:
        CheckpointStore(Path(directory), control_group()).save(
            {"w": LocalShard(torch.zeros(9_000), (18_000,), (9_000 * dist.get_rank(),))}, description(1)
        )
    except CheckpointError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "saved"


def test_a_rank_that_cannot_write_fails_the_save_on_all(tmp_path):
    messages = run_distributed(fail_on_one, 2, str(tmp_path), timeout=60.0)
    assert all("cannot write a checkpoint" in message for message in messages)
    assert list(tmp_path.iterdir()) == []
