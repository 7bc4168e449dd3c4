"""The loss over a shared vocabulary against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.parallel.loss import vocab_parallel_cross_entropy
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.shards import balanced_range
from tests.distributed import run_distributed

Case = tuple[torch.Tensor, torch.Tensor]


def case(vocab_size: int, scale: float, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(20, vocab_size, generator=generator, dtype=torch.float64).mul(scale).to(dtype)
    targets = torch.randint(0, vocab_size, (20,), generator=generator)
    targets[::4] = IGNORE_INDEX
    return logits, targets


def sharded(cases: list[Case]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    ranks = RankGroup(dist.group.WORLD, dist.get_rank(), dist.get_world_size())
    results = []
    for logits, targets in cases:
        begin, end = balanced_range(logits.shape[1], ranks.size, ranks.rank)
        local = logits[:, begin:end].clone().requires_grad_()
        loss = vocab_parallel_cross_entropy(local, targets, logits.shape[1], ranks)
        (loss * torch.arange(20)).sum().backward()
        results.append((loss.detach(), local.grad))
    return results


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bfloat16 gradients are rounded once, to 8 bits; everything inside is float32.
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)],
)
def test_any_split_gives_the_loss_and_gradient_of_the_whole(dtype, tolerance):
    # 4 ranks hold 3 columns as 1, 1, 1, 0; logits of 300 overflow an exponential without its maximum.
    cases = [case(vocab, scale, dtype) for vocab in (3, 5, 96, 101) for scale in (1.0, 300.0)]
    by_rank = run_distributed(sharded, 4, cases)
    for number, (logits, targets) in enumerate(cases):
        whole = logits.double().requires_grad_()
        expected = F.cross_entropy(whole, targets, ignore_index=IGNORE_INDEX, reduction="none")
        (expected * torch.arange(20)).sum().backward()
        gradient = torch.cat([results[number][1].double() for results in by_rank], dim=1)
        for results in by_rank:
            torch.testing.assert_close(results[number][0].double(), expected, rtol=tolerance, atol=1e-30)
        torch.testing.assert_close(gradient, whole.grad, rtol=tolerance, atol=20 * tolerance)
