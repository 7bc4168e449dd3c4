"""A matrix whose outputs ranks share, with communication behind products, against torch's own linear function."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.overlap import column_linear, column_linear_of_split
from ptm_dist.parallel.shards import balanced_range
from tests.distributed import run_distributed

BATCH, WIDTH = 3, 10
CASES = list(product((8, 9, 1), (12, 7, 1), (True, False), (True, False)))
"""Positions, outputs, whether positions are split, whether there is a bias."""


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Problem:
    """The same tensors on every rank, and this rank's parts of them."""

    def __init__(self, positions: int, outputs: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(positions + outputs)
        shapes = (BATCH, positions, WIDTH), (outputs, WIDTH), (outputs,), (BATCH, positions, outputs)
        self.hidden, self.weight, self.bias, self.scale = (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
        )
        self.ranks = RankGroup(dist.group.WORLD, dist.get_rank(), dist.get_world_size())
        self.positions = positions
        self.here = slice(*balanced_range(positions, self.ranks.size, self.ranks.rank))
        self.own = slice(*balanced_range(outputs, self.ranks.size, self.ranks.rank))

    def inputs(self, split: bool, with_bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden = self.hidden[:, self.here] if split else self.hidden
        bias = self.bias[self.own].clone().requires_grad_() if with_bias else None
        return hidden.clone().requires_grad_(), self.weight[self.own].clone().requires_grad_(), bias

    def apply(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, split: bool) -> Tensor:
        if split:
            return column_linear_of_split(hidden, weight, bias, self.ranks, self.positions)
        return column_linear(hidden, weight, bias, self.ranks)

    def deviation(self, split: bool, with_bias: bool, again: bool) -> float:
        """The largest of outputs and gradients, relative to those of the whole in float64."""
        hidden, weight, bias = (t.double().clone().requires_grad_() for t in (self.hidden, self.weight, self.bias))
        whole = F.linear(hidden, weight, bias if with_bias else None)
        (whole * self.scale.double()).sum().backward()
        here = self.here if split else slice(None)
        expected = [whole[..., self.own], hidden.grad[:, here], weight.grad[self.own]]
        inputs = self.inputs(split, with_bias)
        ours = checkpoint(self.apply, *inputs, split, use_reentrant=False) if again else self.apply(*inputs, split)
        (ours * self.scale[..., self.own]).sum().backward()
        found = [ours, inputs[0].grad, inputs[1].grad]
        if with_bias:
            expected.append(bias.grad[self.own])
            found.append(inputs[2].grad)
        assert [a.shape for a in found] == [b.shape for b in expected]
        return max((a - b).norm().item() / (b.norm().item() or 1.0) for a, b in zip(found, expected, strict=True))


def deviations(dtype: torch.dtype) -> list[float]:
    return [
        Problem(positions, outputs, dtype).deviation(split, with_bias, again)
        for positions, outputs, split, with_bias in CASES
        for again in (False, True)
    ]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("world_size", [2, 3])
def test_outputs_and_gradients_are_those_of_the_whole_matrix(world_size, dtype, tolerance):
    for errors in run_distributed(deviations, world_size, dtype):
        assert max(errors) < tolerance


def stored(split: bool) -> int:
    """Numbers that wait for the backward pass, the weight apart."""
    problem = Problem(8, 12, torch.float64)
    hidden, weight, bias = problem.inputs(split, True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t):
        problem.apply(hidden, weight, bias, split)
    return sum(sizes) - weight.numel()


def test_only_the_rank_s_own_positions_are_stored():
    assert run_distributed(stored, 2, True) == [BATCH * 4 * WIDTH] * 2
    assert run_distributed(stored, 2, False) == [BATCH * 8 * WIDTH] * 2


def halves() -> list[tuple[Counter[str], bool]]:
    """What the gradients of inputs, then of weights, call for; and whether they are those of one backward pass."""
    results = []
    for split in (False, True):
        problem = Problem(9, 12, torch.float64)
        hidden, weight, bias = problem.inputs(split, True)
        entry, weight_in = hidden * 2, weight
        out = problem.apply(entry, weight_in, bias, split).square().sum()
        with Calls() as first:
            (for_hidden,) = torch.autograd.grad(out, [hidden], retain_graph=True)
        with Calls() as second:
            for_rest = torch.autograd.grad(out, [weight, bias], retain_graph=True)
        out.backward()
        whole = (hidden.grad, weight.grad, bias.grad)
        same = all(map(torch.equal, (for_hidden, *for_rest), whole))
        results += [(first.counts, same), (second.counts, same)]
    return results


def test_a_pass_for_one_kind_of_gradient_computes_and_sends_nothing_for_the_other():
    for results in run_distributed(halves, 2):
        counts = [counts for counts, _ in results]
        assert all(same for _, same in results)
        assert [count["mm"] + count["bmm"] for count in counts] == [1, 1, 1, 1]
        sums, gathers, scatters = "allreduce_", "_allgather_base_", "_reduce_scatter_base_"
        assert [count[sums] for count in counts] == [1, 0, 0, 0]
        assert [count[gathers] for count in counts] == [0, 0, 0, 1]
        assert [count[scatters] for count in counts] == [0, 0, 1, 0]
