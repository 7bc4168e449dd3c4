"""Ten optimizer steps of every class of transformers in a plain loop, against ten steps of our engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.batches import StepBatch
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.engines.native import NativeEngine
from ptm_dist.models.hf import from_hf, hf_config
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from tests.ptm_dist.hf_models import LENGTH, SECTIONS, SPECIAL_IDS, VOCAB

transformers = pytest.importorskip("transformers")

BATCH, STEPS, DECAY, CLIP = 5, 10, 0.1, 0.5
RULES = {
    "gpt1": ("causal", {"kind": "adamw", "betas": (0.9, 0.95), "eps": 1e-8}, 3e-3),
    "gpt2": ("causal", {"kind": "adamw", "betas": (0.9, 0.95), "eps": 1e-8}, 3e-3),
    "bert-tanh": ("mlm_nsp", {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": False}, 1e-3),
    "roberta": ("mlm", {"kind": "adamw", "betas": (0.9, 0.98), "eps": 1e-6}, 3e-3),
    "albert-tanh": ("mlm_sop", {"kind": "lamb", "betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": False}, 5e-3),
}


class GoogleRule:
    """Adam without bias correction as in google-research/bert (optimization.py), or with the trust ratio of LAMB.

    The ratio is 1 where there is no weight decay, as in google-research/albert (lamb_optimizer.py).
    """

    def __init__(self, model: nn.Module, betas: tuple[float, float], eps: float, ratio: bool) -> None:
        self.parameters = list(model.parameters())
        self.betas, self.eps, self.ratio = betas, eps, ratio
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for parameter, (m, v) in zip(self.parameters, self.moments, strict=True):
            gradient = parameter.grad
            m.copy_(self.betas[0] * m + (1 - self.betas[0]) * gradient)
            v.copy_(self.betas[1] * v + (1 - self.betas[1]) * gradient**2)
            update = m / (v.sqrt() + self.eps)
            if parameter.dim() > 1:
                update = update + DECAY * parameter
                if self.ratio:
                    update = update * (parameter.norm() / update.norm())
            parameter.sub_(learning_rate * update)


class TorchRule:
    """AdamW of torch; biases and LayerNorm are not decayed."""

    def __init__(self, model: nn.Module, betas: tuple[float, float], eps: float) -> None:
        groups = [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=eps)

    def step(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()


def their_rule(model: nn.Module, kind: str, betas, eps: float, bias_correction: bool = True) -> GoogleRule | TorchRule:
    if bias_correction:
        return TorchRule(model, betas, eps)
    return GoogleRule(model, betas, eps, ratio=kind == "lamb")


def batches(objective: str) -> Iterator[StepBatch]:
    """Two batches in turn, so that there is something to learn; rows of different lengths, with pairs."""
    generator = torch.Generator().manual_seed(2)
    causal = objective == "causal"
    made = []
    for _ in range(2):
        ids = torch.randint(5, VOCAB, (BATCH, LENGTH), generator=generator)
        lengths = torch.tensor([LENGTH] * BATCH if causal else [LENGTH, 14, 9, 6, LENGTH])
        valid = torch.arange(LENGTH) < lengths[:, None]
        if causal:
            labels = ids.roll(-1, dims=1).index_fill(1, torch.tensor([LENGTH - 1]), IGNORE_INDEX)
        else:
            chosen = torch.rand(ids.shape, generator=generator) < 0.2
            chosen[0, 0] = True
            labels = torch.where(chosen & valid, ids, IGNORE_INDEX)
            ids = torch.where(chosen, SPECIAL_IDS["mask"], ids)
        pairs = objective.startswith("mlm_")
        second = torch.arange(LENGTH) >= lengths[:, None] // 2
        made.append(
            {
                "inputs": torch.where(valid, ids, SPECIAL_IDS["pad"]),
                "labels": labels,
                "lengths": lengths,
                "segments": (second & valid).long() * pairs,
                "pair_labels": torch.tensor([0, 1, 1, 0, 1] if pairs else [IGNORE_INDEX] * BATCH),
            }
        )
    for step in range(STEPS):
        yield StepBatch(step, step * BATCH, BATCH, torch.arange(BATCH).numpy(), **made[step % 2])


def their_loss(model: nn.Module, batch: StepBatch, objective: str) -> Tensor:
    if objective == "causal":
        return F.cross_entropy(model(batch.inputs).logits.flatten(0, 1), batch.labels.flatten())
    mask = (torch.arange(LENGTH) < batch.lengths[:, None]).long()
    pair_label = {"mlm_nsp": "next_sentence_label", "mlm_sop": "sentence_order_label"}.get(objective)
    labels = {"labels": batch.labels} | ({pair_label: batch.pair_labels} if pair_label else {})
    return model(batch.inputs, attention_mask=mask, token_type_ids=batch.segments, **labels).loss


def our_engine(case: str, theirs: nn.Module) -> NativeEngine:
    """Our engine with their weights."""
    objective, optimizer, learning_rate = RULES[case]
    recipe = Recipe.model_validate(
        {
            "name": "ten-steps",
            "model": SECTIONS[case],
            "data": {"path": "data", "tokenizer": "tokenizer", "sequence_length": LENGTH},
            "objective": {"kind": objective},
            "optimizer": {"learning_rate": learning_rate, "weight_decay": DECAY, "clip_norm": CLIP, **optimizer},
            "training": {"steps": STEPS, "global_batch_size": BATCH, "precision": "fp32"},
            "layout": {"micro_batch_size": 2},
        }
    )
    engine = NativeEngine(recipe, resolve_layout(recipe.layout, 1), torch.device("cpu"))
    weights = from_hf({name: p.detach() for name, p in theirs.named_parameters()}, SECTIONS[case])
    for name, box in engine.state().items():
        if name.startswith("model."):
            box.local.copy_(weights[name.removeprefix("model.")])
    return engine


@pytest.mark.parametrize("case", RULES)
def test_ten_steps_give_the_losses_of_a_plain_loop_with_transformers(case):
    objective, optimizer, learning_rate = RULES[case]
    config = hf_config(SECTIONS[case], SPECIAL_IDS) | {"initializer_range": 0.1}
    model_class = getattr(transformers, config["architectures"][0])
    torch.manual_seed(4)
    # Without dropout, training mode computes the same.
    theirs = model_class(model_class.config_class(**config)).train()
    engine = our_engine(case, theirs)
    rule = their_rule(theirs, **optimizer)

    expected, found, clipped = [], [], 0
    for batch in batches(objective):
        rate = learning_rate * min(1.0, (batch.step + 1) / 3)
        found.append(engine.step(batch, rate).loss)
        loss = their_loss(theirs, batch, objective)
        loss.backward()
        clipped += nn.utils.clip_grad_norm_(theirs.parameters(), CLIP).item() > CLIP
        rule.step(rate)
        theirs.zero_grad()
        expected.append(loss.item())

    assert clipped > 0
    assert expected[-1] < expected[1] - 0.1
    # Float32: a loss near 5 is known to 5e-7, and ten steps carry rounding on.
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-5
