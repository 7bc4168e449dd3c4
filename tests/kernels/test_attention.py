"""Attention with dropout in plain torch: softmax times an explicit mask, the same however it is cut."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ptm_dist.kernels import attention as operation
from ptm_dist.kernels import attention_blocks
from ptm_dist.kernels.attention import _forward, attention
from ptm_dist.kernels.attention_blocks import attend_in_blocks, attend_in_blocks_backward
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.philox import threshold
from ptm_dist.kernels.seen import Seen
from tests.kernels.attention_cases import (
    KINDS,
    a_drop,
    assert_as_accurate,
    mask_of,
    numbers,
    ours,
    plain,
    plain_kept,
    results,
    worst,
)
from tests.parity.cells import Problem, global_batch
from tests.ptm_dist.test_dropout import engine_of

SHAPE = (2, 3, 45, 45, 16)
"""Batch, heads, queries, keys, size of a head."""
CUTS = {"whole": (128, 1 << 19), "blocks of queries": (7, 1 << 19), "blocks of everything": (16, 16 * 45)}
"""Queries and scores of a block."""


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_softmax_times_the_mask_and_its_gradients(kind, cut, monkeypatch):
    rows, room = CUTS[cut]
    monkeypatch.setattr(attention_blocks, "_ROWS", rows)
    monkeypatch.setattr(attention_blocks, "_SCORES", {"cpu": room})
    drop, given = a_drop(2, 45, 45), numbers(*SHAPE)
    # Only the order of sums differs.
    assert worst(results(ours(kind, drop, Form.REFERENCE), given), results(plain(kind, drop), given)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_as_accurate_as_torch(kind, dtype):
    drop = a_drop(2, 45, 45)
    assert_as_accurate(ours(kind, drop, Form.REFERENCE), plain(kind, drop), numbers(*SHAPE), dtype)


def test_attention_inside_of_compiled_code_is_one_operation():
    drop, given = a_drop(2, 45, 45), numbers(*SHAPE)

    def layer(query, key, value):
        return attention(query * 2, key, value, None, True, drop, Choice()).transpose(1, 2).flatten(2)

    given[3] = given[3].transpose(1, 2).flatten(2)
    expected = results(layer, given)
    found = results(torch.compile(layer, backend="aot_eager", fullgraph=True), given)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_operation_is_what_torch_asks_of_one():
    drop, mask = a_drop(2, 45, 45), mask_of("padding", 2, 45, 45)
    tensors = [tensor.requires_grad_() for tensor in numbers(*SHAPE)[:3]]
    places = (drop.key, drop.samples, drop.queries, drop.keys)
    torch.library.opcheck(_forward, (*tensors, mask, False, *places, 0.3, drop.first_head, True, ""))


@pytest.mark.parametrize("in_octets", [True, False])
def test_a_key_stays_by_its_place_alone(in_octets):
    whole = a_drop(3, 20, 61, in_octets=in_octets)
    kept = whole.kept(6)
    assert torch.equal(kept, plain_kept(whole, 6))
    part = whole.of(slice(1, 3), slice(2, 5), slice(4, 19), slice(16, 61))
    assert torch.equal(part.kept(3), kept[1:3, 2:5, 4:19, 16:61])
    scattered = torch.tensor([60, 3, 8, 7, 33])
    assert torch.equal(replace(whole, keys=scattered, in_octets=False).kept(6), kept[..., scattered])


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_the_wanted_share_is_dropped(probability):
    kept = a_drop(4, 128, 128, probability=probability).kept(6)
    share = threshold(probability) / 65536
    assert abs(1 - kept.double().mean() - share) < 5 * math.sqrt(share * (1 - share) / kept.numel())


def test_heads_samples_queries_and_keys_drop_independently():
    kept = a_drop(4, 128, 128).kept(6).double()
    centred = (kept - kept.mean()) / kept.std()
    for dim in range(4):
        neighbours = centred.narrow(dim, 1, kept.shape[dim] - 1) * centred.narrow(dim, 0, kept.shape[dim] - 1)
        assert abs(neighbours.mean()) < 5 / math.sqrt(neighbours.numel())


def test_the_expected_output_is_that_of_attention_without_dropout():
    samples = 2000
    query, key, value, _ = (tensor.expand(samples, -1, -1, -1) for tensor in numbers(1, 1, 4, 24, 8))
    drop = a_drop(samples, 4, 24, probability=0.2)
    mixed = attention(query, key, value, None, False, drop, Choice())
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)[0]
    assert ((mixed.mean(0) - expected).abs() < 5 * mixed.std(0) / math.sqrt(samples)).all()


def test_recomputation_gives_the_same_gradients():
    drop, given = a_drop(2, 45, 45), numbers(*SHAPE)
    function = ours("causal", drop, Form.REFERENCE)
    again = results(lambda *leaves: checkpoint(function, *leaves, use_reentrant=False), given)
    assert all(torch.equal(one, other) for one, other in zip(again, results(function, given), strict=True))


@pytest.mark.parametrize(("kind", "times"), [("none", 1), ("selective", 1), ("full", 2)])
def test_selective_recomputation_keeps_what_attention_gave(kind, times, monkeypatch):
    calls = []

    def counted(*given):
        calls.append(given)
        return attend_in_blocks(*given)

    monkeypatch.setattr(operation, "attend_in_blocks", counted)
    problem = Problem(dropout=0.1)
    engine = engine_of(problem, recompute=kind)
    engine.accumulate(global_batch(problem, 0))
    assert len(calls) == times * engine.model.spec.num_layers


def test_no_scores_are_kept_for_the_backward_pass():
    kept: list[int] = []
    query, key, value, _ = (tensor.requires_grad_() for tensor in numbers(*SHAPE))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        attention(query, key, value, None, True, a_drop(2, 45, 45), Choice())
    vectors = query.numel()
    # Queries, keys, values, output; a number for each query; words and places.
    assert sum(kept) == 4 * vectors + vectors // 16 + 2 + 2 + 45 + 45


@pytest.mark.parametrize("sizes", [(2, 0, 5, 5), (2, 3, 0, 5), (2, 3, 5, 0)])
def test_there_may_be_no_heads_no_queries_and_no_keys(sizes):
    given, drop = numbers(*sizes, 8), a_drop(2, *sizes[2:])
    output, lse = attend_in_blocks(*given[:3], Seen(drop=drop))
    assert output.shape == given[0].shape and output.eq(0).all() and lse.eq(-math.inf).all()
    grads = attend_in_blocks_backward(given[3], *given[:3], output, lse, Seen(drop=drop))
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in given[:3]]
    assert all(grad.eq(0).all() for grad in grads)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="attention has no form compile"):
        attention(*numbers(*SHAPE)[:3], None, True, a_drop(2, 45, 45), Choice({Operation.ATTENTION: Form.COMPILE}))
