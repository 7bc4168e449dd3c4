"""The parts of elastic runs by themselves: layouts for fewer processes, who is late, messages, who is let in."""

from __future__ import annotations

import socket
import time

import pytest

from launcher.elastic.address import Address
from launcher.elastic.gathering import Gathering
from launcher.elastic.hangs import Beat, is_hanging, latest_rank
from launcher.elastic.layouts import fit
from launcher.elastic.wire import Wire
from ptm_dist.errors import LayoutError
from ptm_dist.training.link import Phase
from tests.ptm_dist.runs import make_recipe


@pytest.mark.parametrize(
    ("layout", "available", "world_size", "words"),
    [
        ({"zero_stage": 1}, 3, 3, "ZeRO-1 x3"),
        ({"tensor_parallel": 2, "zero_stage": 1}, 7, 6, "ZeRO-1 x3, tensor parallel 2"),
        ({"pipeline_parallel": 2, "data_parallel": 4}, 5, 4, "data parallel 2, pipeline parallel 2 (1f1b)"),
        ({"zero_stage": 3, "data_parallel_replicate": 2}, 3, 3, "ZeRO-3 x3"),
        ({"zero_stage": 3, "data_parallel_replicate": 2}, 6, 6, "ZeRO-3 x3, 2 copies (HSDP)"),
        ({"tensor_parallel": 4}, 2, 2, "tensor parallel 2"),
    ],
)
def test_fewer_processes_keep_what_shares_layers_and_drop_copies(tmp_path, layout, available, world_size, words):
    recipe = make_recipe(tmp_path, "run", layout=layout)
    found = fit(recipe, available)
    assert (found.world_size, found.layout) == (world_size, words)
    assert found.recipe.training == recipe.training


def test_a_layout_that_the_devices_have_no_memory_for_is_not_taken(tmp_path):
    recipe = make_recipe(tmp_path, "run", layout={"tensor_parallel": 2})
    with pytest.raises(LayoutError, match=r"no layout of run works on 2 processes within 0\.0 GiB each; bring more"):
        fit(recipe, 2, device_memory=1000)


def test_the_late_rank_is_the_one_that_the_others_wait_for():
    waiting = {rank: Beat(Phase.STEP, 7, 70.0, "S") for rank in range(4)}
    assert latest_rank({**waiting, 2: Beat(Phase.STEP, 7, 60.0, "T")}, {}) == 2
    assert latest_rank({**waiting, 3: Beat(Phase.DATA, 7, 60.0, "S")}, {}) == 3
    assert latest_rank({**waiting, 1: Beat(Phase.SAVE, 7, 60.0, "S")}, {}) == 1
    assert latest_rank({**waiting, 0: Beat(Phase.STEP, 6, 60.0, "S")}, {}) == 0
    stack = 'Current thread 0x1 (most recent call first):\n  File "torch/distributed/distributed_c10d.py", line 1\n'
    own = 'Current thread 0x1 (most recent call first):\n  File "data.py", line 3\n'
    assert latest_rank(waiting, {0: stack, 1: stack, 2: own, 3: stack}) == 2


def test_a_round_hangs_when_nobody_has_moved_for_long_or_somebody_is_stopped():
    def hangs(*beats: Beat) -> bool:
        return is_hanging(dict(enumerate(beats)), step_seconds=60, start_seconds=600, stopped_seconds=10)

    assert hangs(Beat(Phase.STEP, 3, 61.0), Beat(Phase.DATA, 3, 70.0))
    assert not hangs(Beat(Phase.STEP, 3, 61.0), Beat(Phase.DATA, 3, 1.0))
    assert not hangs(Beat(Phase.LOAD, 0, 300.0), Beat(Phase.LOAD, 0, 300.0))
    assert hangs(Beat(Phase.STEP, 3, 1.0), Beat(Phase.STEP, 3, 11.0, "T"))
    assert not hangs()


def test_messages_arrive_whole_though_bytes_come_in_pieces_and_others_talk_nonsense():
    ours, theirs = socket.socketpair()
    wire = Wire(ours)
    theirs.sendall(b'{"kind": "hello", "no')
    assert wire.receive() == []
    theirs.sendall(b'de": "n1"}\nnonsense\n[1]\n{"kind": "bye"}\n')
    assert wire.receive() == [{"kind": "hello", "node": "n1"}, {"kind": "bye"}]
    wire.send("ping", step=3)
    assert theirs.recv(100) == b'{"kind": "ping", "step": 3}\n'
    theirs.close()
    assert wire.receive() == []
    assert wire.is_closed


class _Listener:
    def __init__(self):
        self.joined = 0

    def on_join(self):
        self.joined += 1

    def on_loss(self, node, why):
        self.lost = (node, why)

    def on_message(self, node, message):
        raise AssertionError

    def is_computing(self, node):
        return False


def test_only_who_knows_the_token_of_the_run_is_let_in(tmp_path):
    listener = _Listener()
    told = []
    gathering = Gathering(
        tmp_path, "127.0.0.1", 0, 60.0, 60.0, listener, lambda kind, **values: told.append(kind), told.append
    )
    with gathering.open():
        address = Address.read(tmp_path)
        assert address is not None
        for token, members in (("wrong", 0), (address.token, 1)):
            stranger = Wire(socket.create_connection((address.host, address.port)))
            stranger.send("hello", token=token, node="n1", processes=2, report=None)
            deadline = time.monotonic() + 5.0
            while not stranger.is_closed and len(gathering.members) != 1 and time.monotonic() < deadline:
                gathering.listen()
                stranger.receive()
            assert len(gathering.members) == members
            assert stranger.is_closed is (members == 0)
        assert listener.joined == 1
        stranger.close()
        while len(gathering.members):
            gathering.listen()
        assert listener.lost == ("n1", "the connection to its agent broke")
    assert Address.read(tmp_path) is None
    assert told == ["node_joined", "node_lost"]
