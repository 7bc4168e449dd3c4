"""Cross entropy behind a matrix whose logits are not all stored."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.accounting.watch import MemoryWatch
from ptm_dist.errors import RecipeError
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.cross_entropy import CrossEntropy
from ptm_dist.kernels.linear_cross_entropy import Portion, form_of, score_hidden
from ptm_dist.parallel.collectives import share_positions
from ptm_dist.parallel.loss import VocabularyShards
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.overlap import column_linear, column_linear_of_split
from ptm_dist.parallel.shards import balanced_range
from tests.distributed import run_distributed
from tests.kernels.decoders import WEIGHT, Decoded, check_bfloat16_decoder, check_decoder, score_of

FORMS = [Form.WHOLE, Form.CHUNKED]
PORTIONS = [Portion(tokens, 0) for tokens in (1, 7, 20, 64)]
"""64 tokens are one chunk; the last of 7 at a time is a smaller one."""


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("asked", "portion"), [(Form.WHOLE, None), *((Form.CHUNKED, each) for each in PORTIONS)])
def test_loss_and_gradients_are_those_of_torch_however_many_chunks_there_are(asked, portion, bias):
    for tokens, width, vocab_size in ((60, 24, 47), (31, 5, 123), (1, 3, 1)):
        check_decoder(Decoded(tokens, width, vocab_size, bias), asked, portion)


@pytest.mark.parametrize(("asked", "portion"), [(Form.WHOLE, None), (Form.CHUNKED, Portion(50, 0))])
def test_bfloat16_has_at_most_twice_the_error_of_torch(asked, portion):
    check_bfloat16_decoder(Decoded(200, 48, 301), asked, portion)


@pytest.mark.parametrize("asked", FORMS)
def test_nothing_to_predict_is_worth_nothing_and_has_gradients_of_nothing(asked):
    for tokens in (0, 6):
        hidden, weight, bias, targets = Decoded(tokens, 8, 11).tensors(torch.float64)
        score = score_of(hidden, weight, bias, targets.fill_(IGNORE_INDEX), asked, Portion(4, 0), counts_hits=True)
        score.loss.backward()
        assert score.loss == score.hits == 0.0
        assert not any(leaf.grad.any() for leaf in (hidden, weight, bias))


@pytest.mark.parametrize("asked", FORMS)
def test_gradients_of_inputs_and_of_weights_can_be_asked_for_one_after_the_other(asked):
    hidden, weight, bias, targets = Decoded(60, 24, 47).tensors(torch.float64)
    loss = score_of(hidden, weight, bias, targets, asked, Portion(20, 0)).loss * WEIGHT
    once = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    first = torch.autograd.grad(loss, (hidden,), retain_graph=True)
    second = torch.autograd.grad(loss, (weight, bias))
    for own, other in zip(once, (*first, *second), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("asked", FORMS)
def test_evaluation_gives_the_same_loss_and_hits_and_keeps_nothing(asked):
    hidden, weight, bias, targets = Decoded(60, 24, 47).tensors(torch.float64)
    trained = score_of(hidden, weight, bias, targets, asked, Portion(20, 0), counts_hits=True)
    with torch.no_grad():
        evaluated = score_of(hidden, weight, bias, targets, asked, Portion(20, 0), counts_hits=True)
        logits = F.linear(hidden, weight, bias).flatten(0, -2)
    assert evaluated.loss == trained.loss.detach()
    assert evaluated.hits == trained.hits == (logits.argmax(-1) == targets).sum()
    assert not evaluated.loss.requires_grad and not trained.hits.requires_grad


def peak_bytes(tokens: int, asked: Form) -> int:
    hidden, weight, bias, targets = Decoded(tokens, 16, 499, bias=False).tensors(torch.float32)
    watch = MemoryWatch()
    with watch:
        score_of(hidden, weight, bias, targets, asked, Portion(32, 0)).loss.backward()
    return watch.peak


def test_memory_of_chunks_does_not_grow_with_the_logits_of_all_tokens():
    logits = 1024 * 499 * 4
    assert peak_bytes(2048, Form.WHOLE) - peak_bytes(1024, Form.WHOLE) > logits
    # What grows is the gradient of hidden states, twice (as made, and as it counts), and a few numbers a token.
    assert peak_bytes(2048, Form.CHUNKED) - peak_bytes(1024, Form.CHUNKED) < 1024 * (2 * 16 + 16) * 4


def test_chunks_are_as_few_and_as_even_as_the_portion_allows():
    assert Portion(1024, 0).at_a_time(2049, 50257) == 683
    assert Portion(1024, 1 << 22).at_a_time(4096, 1024) == 4096
    assert Portion(1024, 1 << 22).at_a_time(0, 0) == 1


def test_chunks_are_for_more_tokens_than_hidden_states_are_wide():
    assert [form_of(None, tokens, 64) for tokens in (64, 65)] == [Form.WHOLE, Form.CHUNKED]
    assert form_of(Form.WHOLE, 65, 64) is Form.WHOLE


def test_liger_is_refused_with_what_to_use_where_it_cannot_compute():
    hidden, weight, bias, targets = Decoded(60, 24, 47).tensors(torch.float32)
    with pytest.raises(RecipeError, match=r"kernels\.linear_cross_entropy=liger: .*use auto or chunked"):
        score_of(hidden, weight, bias, targets, Form.LIGER, None)


SharedCase = tuple[Decoded, Form, bool]


def shared(cases: list[SharedCase]) -> list[list[Tensor]]:
    """Loss, hits and this rank's gradients, its positions or the whole of hidden states among them."""
    ranks = RankGroup(dist.group.WORLD, dist.get_rank(), dist.get_world_size())
    found = []
    for given, asked, splits in cases:
        hidden, weight, bias, targets = given.tensors(torch.float64)
        begin, end = balanced_range(given.vocab_size, ranks.size, ranks.rank)
        rows, biases = weight[begin:end].detach().requires_grad_(), bias[begin:end].detach().requires_grad_()
        positions = hidden.shape[1]
        counts = share_positions(positions, ranks)
        own = hidden.detach()
        if splits:
            own = own.split(counts, dim=1)[ranks.rank]
        own.requires_grad_()

        def linear(states: Tensor, given=(rows, biases, ranks, positions), splits=splits) -> Tensor:
            return column_linear_of_split(states, *given) if splits else column_linear(states, *given[:3])

        score = score_hidden(
            linear,
            own,
            rows,
            biases,
            targets,
            CrossEntropy(counts_hits=True),
            Choice({Operation.LINEAR_CROSS_ENTROPY: asked}),
            VocabularyShards(ranks, given.vocab_size, positions if splits else 0),
            Portion(7, 0),
        )
        (score.loss * WEIGHT).backward()
        found.append([score.loss.detach(), score.hits, own.grad, rows.grad, biases.grad])
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_share_a_vocabulary_compute_what_one_does(world_size):
    # Shares of 2 tokens differ in size, and the third of three ranks has none.
    sizes = [Decoded(20, 6, vocab_size) for vocab_size in (2, 101)]
    cases = [(given, asked, splits) for given in sizes for asked in FORMS for splits in (False, True)]
    by_rank = run_distributed(shared, world_size, cases)
    for number, (given, _, splits) in enumerate(cases):
        hidden, weight, bias, targets = given.tensors(torch.float64)
        logits = F.linear(hidden, weight, bias).flatten(0, -2)
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
        (loss * WEIGHT).backward()
        results = [found[number] for found in by_rank]
        for one, other in pairwise(results):
            assert torch.equal(one[0], other[0])
        into_hidden = torch.cat([own[2] for own in results], dim=1) if splits else results[-1][2]
        into_weight, into_bias = (torch.cat([own[place] for own in results]) for place in (3, 4))
        found = [results[0][0], into_hidden, into_weight, into_bias]
        for own, expected in zip(found, (loss.detach(), hidden.grad, weight.grad, bias.grad), strict=True):
            # Rounding of float64; a rank left out of a sum shows at 1e-1.
            torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
        assert results[0][1] == (logits.argmax(-1) == targets).sum()
