"""Gradients of replicas beside those of torch's DistributedDataParallel, and of weights in two types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ptm_dist.parallel.mesh import ALONE, RankGroup
from ptm_dist.parallel.replicas import Replicas, bucket_counts
from tests.distributed import run_distributed

WIDTH, MICROS = 8, 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def loss_of(model: nn.Module, micro: int, rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    inputs = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * micro + rank))
    return model(inputs.to(dtype)).square().sum()


def replicas_of(model: nn.Module, ranks: RankGroup, dtype: torch.dtype | None, bucket_bytes: int) -> Replicas:
    replicas = Replicas(model, ranks, dtype, bucket_bytes)
    replicas.materialized()
    with torch.no_grad():
        for name, value in network().named_parameters():
            replicas.masters[name].copy_(value)
    replicas.changed()
    return replicas


def summed(bucket_bytes: int, *, halves: bool) -> dict[str, Tensor]:
    """Of all micro-batches and ranks; twice, so that a second step finds nothing of the first."""
    model, ranks = network(), RankGroup(dist.group.WORLD, dist.get_rank(), 2)
    replicas = replicas_of(model, ranks, None, bucket_bytes)
    for _ in range(2):
        for micro in range(MICROS):
            loss, is_last = loss_of(model, micro, ranks.rank), micro == MICROS - 1
            if halves:
                replicas.hold_weights()
                loss.backward()
                replicas.finish_weights(last=is_last)
            else:
                replicas.begin_backward(last=is_last)
                loss.backward()
                replicas.end_backward()
        found = {name: master.grad for name, master in replicas.masters.items()}
        for master in replicas.masters.values():
            master.grad = None
    return found


def both(bucket_bytes: int, halves: bool) -> Any:
    model = DistributedDataParallel(network())
    for micro in range(MICROS - 1):
        with model.no_sync():
            loss_of(model, micro, dist.get_rank()).backward()
    loss_of(model, MICROS - 1, dist.get_rank()).backward()
    means = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    return means, summed(bucket_bytes, halves=halves)


@pytest.mark.parametrize("halves", [False, True], ids=["whole backward passes", "halves"])
@pytest.mark.parametrize("bucket_bytes", [1, 4 * WIDTH * WIDTH, 1 << 20], ids=["one each", "some", "one in all"])
def test_gradients_are_those_of_torch_ddp(bucket_bytes, halves):
    for means, sums in run_distributed(both, 2, bucket_bytes, halves):
        # DDP gives the mean of two: halving and doubling are exact.
        for name, mean in means.items():
            assert torch.equal(sums[name], 2 * mean), name


def low_precision_gradients(weights: nn.Module, micros: int) -> dict[str, Tensor]:
    """Of weights rounded to bfloat16, each micro-batch's added in float32."""
    total: dict[str, Tensor] = {}
    for micro in range(micros):
        plain = network()
        plain.load_state_dict(weights.state_dict())
        loss_of(plain.bfloat16(), micro, 0, torch.bfloat16).backward()
        for name, parameter in plain.named_parameters():
            total[name] = total.get(name, 0.0) + parameter.grad.float()
    return total


def step(model: nn.Module, replicas: Replicas, micros: int) -> dict[str, Tensor]:
    """The gradients that are left; where weights and gradients share memory, nothing of the weights is."""
    replicas.begin_step(micros)
    for micro in range(micros):
        loss = loss_of(model, micro, 0, torch.bfloat16)
        replicas.begin_backward(last=micro == micros - 1)
        loss.backward()
        replicas.end_backward()
    return {name: master.grad.clone() for name, master in replicas.masters.items()}


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20], ids=["one each", "one in all"])
def test_gradients_of_low_precision_add_up_in_single_precision(bucket_bytes):
    model, expected = network(), network()
    replicas = replicas_of(model, ALONE, torch.bfloat16, bucket_bytes)
    for micros in (1, 1, MICROS, 1, MICROS):  # weights move into the gradients' memory and out of it
        found = step(model, replicas, micros)
        for name, gradient in low_precision_gradients(expected, micros).items():
            assert found[name].dtype == torch.float32
            assert torch.equal(found[name], gradient), (micros, name)
        with torch.no_grad():
            for name, weight in expected.named_parameters():
                weight.sub_(0.01 * found[name])
                replicas.masters[name].sub_(0.01 * found[name])
                replicas.masters[name].grad = None
        replicas.changed()
    assert all(parameter.grad is None and parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_weights_lie_where_their_gradients_will_be_if_there_is_one_backward_pass():
    model = network()
    replicas = replicas_of(model, ALONE, torch.bfloat16, 1 << 20)
    replicas.begin_step(1)
    loss = loss_of(model, 0, 0, torch.bfloat16)
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    loss.backward()
    for name, master in replicas.masters.items():
        assert master.grad.data_ptr() == places[name]


def test_gradients_that_nobody_has_used_are_not_written_over():
    model = network()
    replicas = replicas_of(model, ALONE, torch.bfloat16, 1 << 20)
    once = step(model, replicas, 1)
    twice = step(model, replicas, 1)
    for name, gradient in once.items():
        assert torch.equal(twice[name], 2 * gradient), name


def test_weights_that_compute_follow_those_that_are_updated():
    model = network()
    replicas = replicas_of(model, ALONE, torch.bfloat16, 1)
    with torch.no_grad():
        for master in replicas.masters.values():
            master.add_(1.0)
    replicas.changed()
    model(torch.zeros(1, WIDTH, dtype=torch.bfloat16))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, replicas.masters[name].bfloat16())


def missing() -> list[float]:
    """One rank has no gradient of the last layer: what it has there is 0, not what stood in memory."""
    model, ranks = network(), RankGroup(dist.group.WORLD, dist.get_rank(), 2)
    replicas = replicas_of(model, ranks, None, 1)
    replicas.begin_backward(last=True)
    (loss_of(model if ranks.rank else model[:1], 0, ranks.rank)).backward()
    replicas.end_backward()
    last = replicas.masters["4.weight"].grad
    return [] if last is None else last.flatten().tolist()


def test_a_rank_without_a_gradient_adds_nothing():
    nothing, sums = run_distributed(missing, 2)
    model = network()
    loss_of(model, 0, 1).backward()
    assert nothing == []
    assert sums == model[4].weight.grad.flatten().tolist()


def test_buckets_are_full_or_the_last():
    assert bucket_counts([3, 3, 3, 10, 1], 6) == [2, 2, 1]
    assert bucket_counts([], 6) == []
