"""The sum of embeddings by torch's operations and by its compiler."""

from __future__ import annotations

import itertools

import pytest
import torch

from ptm_dist.kernels.choice import Form
from tests.kernels.norm_cases import a_drop, embed_inputs, fused_embed, plain_embed, run


@pytest.mark.parametrize(
    ("form", "normed", "dropping", "segments"),
    [*itertools.product([Form.REFERENCE], *[[False, True]] * 3), (Form.COMPILE, True, True, True)],
)
def test_results_and_gradients_are_those_of_an_explicit_mask(form, normed, dropping, segments):
    drop = a_drop(3, 5, own_positions=segments) if dropping else None
    inputs = embed_inputs(3, 5, 47, normed=normed, segments=segments, own_positions=segments)
    expected = run(plain_embed(drop, segments=segments), inputs, torch.float64)
    found = run(fused_embed(drop, form, segments=segments), inputs, torch.float64)
    for ours, theirs in zip(found.all(), expected.all(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)  # Only rounding differs.


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="embedding has no form liger"):
        fused_embed(None, Form.LIGER, segments=False)(torch.ones(1, 1, 8), torch.ones(1, 8))
