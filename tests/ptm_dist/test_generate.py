from __future__ import annotations

import pytest
import torch
from torch import nn

from ptm_dist.downstream.generate import generate
from ptm_dist.models import ModelOutput, build_model
from ptm_dist.models.hf import to_hf
from ptm_dist.recipe.schema import ModelSection


class Ramp(nn.Module):
    """Gives every position the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)
        self.seen: list[int] = []

    def forward(self, input_ids, *, positions):
        self.seen.append(input_ids.shape[1])
        return ModelOutput(self.logits.expand(len(positions), -1), None)


def drawn(logits: list[float], count: int = 400, **options) -> set[int]:
    prompts = torch.zeros(count, 1, dtype=torch.int64)
    ids = generate(Ramp(logits), prompts, max_new_tokens=1, max_positions=8, **options)
    return set(ids[:, 1].tolist())


@pytest.fixture
def gpt():
    section = ModelSection(vocab_size=61, hidden_size=32, num_layers=2, num_heads=4, max_positions=24)
    torch.manual_seed(3)
    model = build_model(section).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return section, model


def test_greedy_tokens_equal_those_of_transformers(gpt):
    transformers = pytest.importorskip("transformers")
    section, model = gpt
    config = transformers.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=None, eos_token_id=None
    )
    reference = transformers.GPT2LMHeadModel(config).eval()
    weights = to_hf(dict(model.named_parameters()), section)
    reference.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    prompts = torch.randint(61, (3, 5), generator=torch.Generator().manual_seed(0))
    expected = reference.generate(prompts, max_new_tokens=19, do_sample=False, attention_mask=torch.ones_like(prompts))
    ours = generate(model, prompts, max_new_tokens=19, max_positions=24, temperature=0.0)
    assert torch.equal(ours, expected)


def test_a_longer_text_than_the_model_takes_is_cropped_at_its_beginning(gpt):
    _, model = gpt
    prompts = torch.randint(61, (2, 30), generator=torch.Generator().manual_seed(0))
    ids = generate(model, prompts, max_new_tokens=3, max_positions=24, temperature=0.0)
    assert ids.shape == (2, 33)
    tail = generate(model, ids[:, 8:32], max_new_tokens=1, max_positions=24, temperature=0.0)
    assert torch.equal(ids[:, -1], tail[:, -1])


def test_the_seed_decides_and_the_global_generator_is_not_touched(gpt):
    _, model = gpt
    prompts = torch.zeros(4, 1, dtype=torch.int64)
    before = torch.get_rng_state()
    first, again, other = (
        generate(model, prompts, max_new_tokens=10, max_positions=24, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_top_k_draws_from_the_k_likeliest_only():
    assert drawn([1.0, 3.0, 2.0, 2.9], top_k=2) == {1, 3}


def test_top_p_keeps_tokens_until_their_share_is_reached():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert drawn(logits, top_p=0.5) == {0}
    assert drawn(logits, top_p=0.6) == {0, 1}
    assert drawn(logits, top_p=0.0) == {0}
    assert drawn(logits, top_p=1.0) == {0, 1, 2, 3}


def test_temperature_flattens_and_sharpens():
    assert drawn([0.0, 5.0], temperature=0.1) == {1}
    assert drawn([0.0, 5.0], temperature=10.0) == {0, 1}


def test_frequencies_follow_the_distribution():
    prompts = torch.zeros(20000, 1, dtype=torch.int64)
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    ids = generate(Ramp(probabilities.log().tolist()), prompts, max_new_tokens=1, max_positions=8)
    frequencies = torch.bincount(ids[:, 1], minlength=3) / 20000
    assert torch.allclose(frequencies, probabilities, atol=0.02)


def test_a_sequence_that_ended_stays_ended_and_all_ended_stops_the_loop():
    model = Ramp([0.0, 0.0])
    ids = generate(model, torch.zeros(8, 1, dtype=torch.int64), max_new_tokens=200, max_positions=300, end_id=1)
    assert ids.shape[1] < 200
    for row in ids.tolist():
        first_end = row.index(1)
        assert set(row[first_end:]) == {1}
