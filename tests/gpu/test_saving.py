"""Checkpoints beside the steps, on CUDA; `make gpu-test`."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.checkpoint.background import BackgroundSaves
from ptm_dist.checkpoint.store import CheckpointStore, verify
from ptm_dist.parallel.control import ALONE
from ptm_dist.parallel.shards import LocalShard
from tests.ptm_dist.test_checkpoint_store import description

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_state_on_a_device_may_change_as_soon_as_a_save_has_begun(tmp_path):
    device, shape = torch.device("cuda", 0), (3000, 1000)
    values = torch.randn(shape, device=device)
    expected = values.cpu()
    store = CheckpointStore(tmp_path, ALONE)
    saves = BackgroundSaves(store, ALONE, device)
    saves.start({"a": LocalShard(values, shape, (0, 0))}, description(1))
    assert saves._prepared.buffer._memory[:8].is_pinned()
    values.zero_()
    info = saves.wait()
    saves.close()
    loaded = torch.empty(shape, device=device)
    store.load(info, {"a": LocalShard(loaded, shape, (0, 0))})
    assert torch.equal(loaded.cpu(), expected)
    assert verify(info.path) == []
