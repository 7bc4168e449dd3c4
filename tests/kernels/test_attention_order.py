"""Torch's attention kernels stand in another order where that was measured to be faster, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend

from ptm_dist.kernels.attention_order import attention_order
from tests.ptm_dist.test_tensor_parallel import Case

CUDA = torch.device("cuda", 0)
KERNELS = ("flash", "mem_efficient", "math", "cudnn")


def order() -> list[int]:
    return list(torch._C._get_sdp_priority_order())


def enabled() -> list[bool]:
    return [getattr(torch._C, f"_get_{kernel}_sdp_enabled")() for kernel in KERNELS]


def of_capability(monkeypatch, major: int, minor: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))


def test_on_capability_9_cudnn_comes_first_and_all_others_remain(monkeypatch):
    of_capability(monkeypatch, 9, 0)
    before = order(), enabled()
    with attention_order(CUDA):
        first, second, *_ = order()
        assert (first, second) == (int(SDPBackend.CUDNN_ATTENTION), int(SDPBackend.FLASH_ATTENTION))
        assert enabled() == [True] * len(KERNELS)
    assert (order(), enabled()) == before


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_on_other_gpus_the_order_is_torchs(monkeypatch, capability):
    of_capability(monkeypatch, *capability)
    before = order(), enabled()
    with attention_order(CUDA):
        assert (order(), enabled()) == before


def test_deterministic_runs_on_a_gpu_have_all_kernels_but_cudnn(monkeypatch):
    of_capability(monkeypatch, 9, 0)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    before = order(), enabled()
    with attention_order(CUDA):
        assert order() == before[0]
        assert enabled() == [kernel != "cudnn" for kernel in KERNELS]
    assert (order(), enabled()) == before


def test_on_a_cpu_the_order_is_torchs():
    before = order(), enabled()
    with attention_order(torch.device("cpu")):
        assert (order(), enabled()) == before


def test_a_block_is_compiled_in_one_graph_within(monkeypatch):
    of_capability(monkeypatch, 9, 0)
    case = Case("gpt2", 3)
    model = case.model()
    ids = case.inputs()[0]
    plain = model.encode(ids)
    for block in model.blocks():
        block.forward = torch.compile(block.forward, backend="eager", fullgraph=True)  # raises at a graph break
    with attention_order(CUDA):
        assert torch.equal(model.encode(ids), plain)
