"""Generation with a model that is spread over ranks."""

from __future__ import annotations

from dataclasses import replace

import torch

from ptm_dist.downstream.generate import generate
from ptm_dist.engines.prediction import Predictor
from ptm_dist.models import build_model
from tests.distributed import run_distributed
from tests.parity.cells import Cell, Problem, initial_weights

PROBLEM = Problem("gpt2", vocab_size=101, num_layers=5)
LAYOUTS = [
    {"tensor_parallel": 2, "pipeline_parallel": 2},
    {"pipeline_parallel": 2, "pipeline_schedule": "zbv_zero_bubble", "zero_stage": 3},
    {"context_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True},
    {"context_parallel": 4, "context_method": "ulysses"},
    {"pipeline_parallel": 4},
]
PROMPTS = torch.tensor([[3, 50, 7], [99, 0, 12]])
ENCODER = replace(PROBLEM, family="bert")


def continued(model) -> torch.Tensor:
    return generate(model, PROMPTS, max_new_tokens=8, max_positions=8, temperature=0.8, top_k=20, seed=5)


def alone(problem: Problem) -> torch.nn.Module:
    model = build_model(Cell(problem, 1, {}).recipe().model).double()
    model.load_state_dict(initial_weights(problem), strict=False)
    model.tie()
    return model.eval()


def over_ranks(layouts, problem: Problem):
    found = []
    for layout in layouts:
        engine = Cell(problem, 4, layout).engine()
        weights = initial_weights(problem)
        for name, shard in engine.model.shards().items():
            shard.local.copy_(shard.cut(weights[name]))
        engine.model.changed()
        predictor = Predictor(engine)
        logits = predictor(PROMPTS, torch.tensor([0, 5, 4])).tokens
        found.append((logits, continued(predictor) if problem.family == "gpt2" else None))
        engine.close()
    return found


def test_a_model_over_four_ranks_continues_texts_as_one_process_does():
    model = alone(PROBLEM)
    expected = continued(model)
    logits = model(PROMPTS, positions=torch.tensor([0, 5, 4])).tokens
    for rank in run_distributed(over_ranks, 4, LAYOUTS, PROBLEM):
        for layout, (found, tokens) in zip(LAYOUTS, rank, strict=True):
            torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-12, msg=str(layout))
            assert torch.equal(tokens, expected), layout


def test_an_encoder_over_four_ranks_predicts_what_one_process_does():
    logits = alone(ENCODER)(PROMPTS, positions=torch.tensor([0, 5, 4])).tokens
    layouts = [LAYOUTS[0], LAYOUTS[1]]
    for rank in run_distributed(over_ranks, 4, layouts, ENCODER):
        for layout, (found, _) in zip(layouts, rank, strict=True):
            torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-12, msg=str(layout))
