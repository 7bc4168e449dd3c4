"""Whole steps with every kernel on, in float64, against steps of torch's own operations."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.engines.native import NativeEngine
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import KernelsSection, Recipe
from tests.parity.cells import Cell, Problem, global_batch

KERNELS = ("cross_entropy", "add_norm", "bias_gelu", "embedding", "attention")


def gradients(problem: Problem, form: str) -> tuple[float, dict[str, torch.Tensor]]:
    recipe = Cell(problem, 1, {}, 2).recipe()
    kernels = KernelsSection(linear_cross_entropy="chunked", **dict.fromkeys(KERNELS, form))
    recipe = Recipe.model_validate({**recipe.model_dump(), "kernels": kernels})
    engine = NativeEngine(recipe, resolve_layout(recipe.layout, 1), torch.device("cpu"))
    sums, _ = engine.accumulate(global_batch(problem, 0))
    return sums[0].item(), engine.model.gradients()


@pytest.mark.parametrize("family", ["gpt1", "gpt2", "bert", "albert"])
def test_a_step_by_kernels_is_a_step_of_plain_operations(family):
    problem = Problem(family, global_batch=4, dropout=0.1)
    (loss, ours), (reference_loss, reference) = gradients(problem, "triton"), gradients(problem, "reference")
    # Sums in another order.
    assert loss == pytest.approx(reference_loss, rel=1e-13)
    for name in reference:
        assert torch.allclose(ours[name], reference[name], rtol=1e-11, atol=1e-13), name
