from __future__ import annotations

import errno
import signal

import pytest
import torch.distributed as dist

from data_pipeline.errors import DataError
from launcher.failures import (
    Exit,
    Failure,
    Kind,
    describe,
    first_cause,
    is_collateral,
    read_failure,
    remove_failures,
    write_failure,
)
from ptm_dist.errors import CheckpointError, DiskFullError


def chained() -> RuntimeError:
    try:
        try:
            raise ConnectionResetError("Connection reset by peer")
        except ConnectionResetError as error:
            raise RuntimeError("loading failed") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL error"),
        dist.DistNetworkError("failed to recv"),
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"),
        RuntimeError("Gloo connectFullMesh failed with ..."),
        BrokenPipeError("x"),
        chained(),
    ],
)
def test_a_lost_peer_is_collateral(error):
    assert is_collateral(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("Connection closed by peer"), OSError(28, "x")]
)
def test_other_errors_are_not_collateral(error):
    assert not is_collateral(error)


def test_a_failure_is_read_as_it_was_written(tmp_path):
    failure = Failure.of(3, ValueError("x"))
    write_failure(tmp_path, failure)
    assert read_failure(tmp_path, 3) == failure
    assert [path.name for path in tmp_path.iterdir()] == ["failure_rank3.json"]
    remove_failures(tmp_path)
    assert read_failure(tmp_path, 3) is None


def test_the_earliest_failure_that_is_not_collateral_is_the_first_cause(tmp_path):
    write_failure(tmp_path, Failure(0, 10.0, Kind.COLLATERAL, "lost"))
    write_failure(tmp_path, Failure(1, 12.0, Kind.ERROR, "late"))
    write_failure(tmp_path, Failure(2, 11.0, Kind.ERROR, "early"))
    exits = [Exit(rank, 1, 13.0) for rank in range(3)]
    assert first_cause(tmp_path, exits).message == "early"


def test_a_silent_death_counts_from_when_it_was_seen(tmp_path):
    write_failure(tmp_path, Failure(0, 10.0, Kind.ERROR, "odd text of a lost peer"))
    cause = first_cause(tmp_path, [Exit(0, 1, 10.1), Exit(1, -signal.SIGSEGV, 9.9)])
    assert cause.message == "rank 1 was killed by SIGSEGV"


def test_if_all_lost_each_other_the_text_says_so(tmp_path):
    write_failure(tmp_path, Failure(0, 10.0, Kind.COLLATERAL, "DistNetworkError: timeout"))
    cause = first_cause(tmp_path, [Exit(0, 1, 10.0)])
    assert "the network or a machine may have failed" in describe(cause, tmp_path)


def test_a_users_mistake_is_shown_without_traceback(tmp_path):
    try:
        raise DataError("shard 3 is truncated")
    except DataError as error:
        failure = Failure.of(1, error)
    assert failure.kind is Kind.USER
    assert describe(failure, tmp_path) == "shard 3 is truncated"


def test_a_full_disk_may_pass_wherever_it_is_met(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    assert Failure.of(0, DiskFullError("the disk of x is full")).kind is Kind.PASSING
    assert Failure.of(0, full).kind is Kind.PASSING
    other = RuntimeError("could not write")
    other.__cause__ = full
    failure = Failure.of(0, other)
    assert failure.kind is Kind.PASSING
    assert describe(failure, tmp_path) == "RuntimeError: could not write"
    assert Failure.of(0, OSError(errno.EIO, "Input/output error")).kind is Kind.ERROR
    assert Failure.of(0, CheckpointError("damaged")).kind is Kind.USER


def test_a_long_traceback_is_cut_at_its_beginning(tmp_path):
    failure = Failure(0, 1.0, Kind.ERROR, "ValueError: x", "\n".join(f"line {n}" for n in range(50)))
    text = describe(failure, tmp_path)
    assert "line 49" in text
    assert "line 10" not in text
