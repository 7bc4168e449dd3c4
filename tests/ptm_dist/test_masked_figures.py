from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.shards import ShardSet
from ptm_dist.downstream.baselines import chance_tail, commonest_token, unigram_accuracy
from ptm_dist.downstream.fill import fill_masks
from ptm_dist.models import build_model
from ptm_dist.recipe.schema import ModelSection
from tests.ptm_dist.runs import SPECIAL_IDS, write_data


def test_the_commonest_token_and_its_accuracy_are_those_of_a_count(tmp_path):
    write_data(tmp_path / "data")
    train, validation = (ShardSet.open(tmp_path / "data" / side) for side in ("train", "validation"))
    text = [token for token in train.tokens(0, train.num_tokens).tolist() if token not in SPECIAL_IDS.values()]
    token = commonest_token(train)
    assert text.count(token) == max(text.count(other) for other in set(text))

    samples = build_samples(validation, ObjectiveOptions("mlm"), 16, seed=1, source="validation", keep_tail=True)
    labels = np.concatenate([samples.sample(index, 0).labels for index in range(len(samples))])
    labels = labels[labels != IGNORE_INDEX]
    assert unigram_accuracy(token, samples) == pytest.approx((labels == token).mean())
    assert unigram_accuracy(int(labels[0]), samples) > 0.0


def test_the_tail_of_chance_is_the_binomial_one():
    for trials in (1, 7, 40):
        for hits in range(trials + 1):
            exact = sum(math.comb(trials, k) for k in range(hits, trials + 1)) / 2**trials
            assert chance_tail(hits, trials) == pytest.approx(exact, rel=1e-12)
    assert chance_tail(311, 438) < 1e-15


def test_guesses_are_the_softmax_at_the_masked_positions():
    torch.manual_seed(0)
    section = ModelSection(family="roberta", vocab_size=31, hidden_size=16, num_layers=1, num_heads=2, max_positions=8)
    model = build_model(section).eval()
    ids = torch.tensor([5, 30, 7, 30, 6])
    guesses = fill_masks(model, ids, mask_id=30, top_k=3)
    probabilities = torch.softmax(model(ids[None]).tokens[0, [1, 3]], dim=-1)
    assert len(guesses) == 2
    for row, expected in zip(guesses, probabilities, strict=True):
        assert [guess.token for guess in row] == expected.topk(3).indices.tolist()
        assert [guess.probability for guess in row] == pytest.approx(expected.topk(3).values.tolist(), rel=1e-5)
