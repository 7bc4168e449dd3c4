"""An encoder that leaves padding out computes what the padded one does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ptm_dist.models.draws import Draws, dropout_keys
from ptm_dist.models.unpadding import ValidPositions
from ptm_dist.parallel.activation_offload import offload_activations
from ptm_dist.parallel.recompute import apply_recompute
from ptm_dist.recipe.schema import Recompute
from tests.ptm_dist.test_tensor_parallel import Case

TOLERANCE = 1e-12
"""A mistake shows at 1e-3, another order of sums in float64 at 1e-15."""


class Widest(nn.Module):
    """Notes how many positions a feed-forward layer was given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.positions = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.positions = hidden.shape[0] * hidden.shape[1]
        return self.inner(hidden)


def trained(case: Case, *, unpads: bool, kind: Recompute = Recompute.NONE, leaves: bool = False, dropout=0.0):
    """Outputs at chosen positions and of pairs, gradients by name, and the positions that a block computed."""
    model = case.model()
    model.spec = replace(model.spec, dropout=dropout, attention_dropout=dropout)
    block = model.blocks()[0]
    block.ffn.up = Widest(block.ffn.up)
    apply_recompute(model, kind)
    if leaves:
        offload_activations(model)
    inputs = case.inputs()
    draws = Draws(dropout_keys(1, 2, case.layers), torch.tensor([4, 5, 6])) if dropout else None
    output = model(*inputs, draws=draws, packed=ValidPositions.of(inputs[2]) if unpads else None)
    loss = output.tokens.square().sum() + (0 if output.pairs is None else output.pairs.square().sum())
    loss.backward()
    gradients = {name.replace("inner.", ""): parameter.grad for name, parameter in model.named_parameters()}
    return [output.tokens, *([] if output.pairs is None else [output.pairs])], gradients, block.ffn.up.positions


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", list(Recompute))
def test_predictions_and_gradients_are_those_of_the_padded_batch(family, kind, dropout):
    case = Case(family, 3, length=12, layers=3)
    outputs, gradients, computed = trained(case, unpads=True, kind=kind, leaves=True, dropout=dropout)
    expected, theirs, padded = trained(case, unpads=False, dropout=dropout)
    for ours, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=TOLERANCE, atol=TOLERANCE)
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=TOLERANCE, atol=TOLERANCE * largest)
    assert (computed, padded) == (case.inputs()[2].sum(), 3 * 12)


def test_packed_positions_come_back_to_their_places():
    valid = torch.tensor([[True, True, False], [True, False, False]])
    positions, hidden = ValidPositions.of(valid), torch.randn(2, 3, 4)
    packed = positions.pack(hidden)
    assert torch.equal(packed, hidden[valid][None])
    assert torch.equal(positions.spread(packed), hidden * valid[..., None])


def test_packing_and_spreading_are_each_others_backward_pass_and_keep_no_rows():
    valid = torch.tensor([[True, True, False], [True, False, False]])
    positions, kept = ValidPositions.of(valid), []
    padded = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(positions.pack(padded), padded[valid][None])
    assert torch.equal(positions.spread(packed)[valid], packed[0])
    assert positions.spread(packed)[~valid].count_nonzero() == 0
    assert torch.autograd.gradcheck(positions.pack, padded)
    assert torch.autograd.gradcheck(positions.spread, packed)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        positions.spread(packed)
        positions.pack(padded)
    assert all(tensor is positions.places for tensor in kept)
