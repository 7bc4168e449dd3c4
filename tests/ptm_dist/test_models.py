"""Models against implementations we did not write."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptm_dist.models import build_model
from ptm_dist.models.attention import SdpaMixer, Sight, Window
from ptm_dist.models.banded import banded_attention, block_mask
from ptm_dist.models.spec import Activation, BlockSpec, NormPosition
from ptm_dist.models.transformer import Block
from ptm_dist.recipe.schema import ModelSection
from tests.ptm_dist.hf_models import randomise, relative_error

PUBLISHED_GPT2 = {
    (12, 768, 12): 124_439_808,
    (24, 1024, 16): 354_823_168,
    (36, 1280, 20): 774_030_080,
    (48, 1600, 25): 1_557_611_200,
}


@pytest.mark.parametrize(("shape", "count"), PUBLISHED_GPT2.items())
def test_gpt2_has_the_published_number_of_parameters(shape, count):
    layers, hidden, heads = shape
    section = ModelSection(vocab_size=50257, hidden_size=hidden, num_layers=layers, num_heads=heads)
    with torch.device("meta"):
        model = build_model(section)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def torch_layer(ours: Block, spec: BlockSpec) -> nn.TransformerEncoderLayer:
    """The layer of torch with the weights of our block."""
    approximate = "tanh" if spec.activation is Activation.GELU_TANH else "none"
    theirs = nn.TransformerEncoderLayer(
        spec.hidden_size,
        spec.num_heads,
        dim_feedforward=spec.ffn_hidden_size,
        dropout=0.0,
        activation=lambda x: F.gelu(x, approximate=approximate),
        norm_first=spec.norm_position is NormPosition.PRE,
        batch_first=True,
        dtype=torch.float64,
    )
    shape = (spec.num_heads, 3, spec.head_size, -1)
    with torch.no_grad():
        in_order = [p.view(shape).transpose(0, 1).reshape(p.shape) for p in ours.attention.qkv.parameters()]
        theirs.self_attn.in_proj_weight.copy_(in_order[0])
        theirs.self_attn.in_proj_bias.copy_(in_order[1])
        pairs = [
            (theirs.self_attn.out_proj, ours.attention.output),
            (theirs.linear1, ours.ffn.up),
            (theirs.linear2, ours.ffn.down),
            (theirs.norm1, ours.attention_norm),
            (theirs.norm2, ours.ffn_norm),
        ]
        for theirs_part, ours_part in pairs:
            theirs_part.load_state_dict(ours_part.state_dict())
    return theirs


def plainly(block: Block, spec: BlockSpec, hidden: torch.Tensor) -> torch.Tensor:
    """A block with torch's own attention over whole rows."""
    mixer, window = SdpaMixer(), Window.whole(hidden.shape[1], hidden.device)
    return block(hidden, mixer, mixer.prepare(Sight(spec.causal), window))


@pytest.mark.parametrize("position", NormPosition)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("activation", Activation)
def test_block_equals_the_encoder_layer_of_torch(position, causal, activation):
    spec = BlockSpec(
        hidden_size=24,
        num_heads=3,
        ffn_hidden_size=50,
        activation=activation,
        norm_position=position,
        layer_norm_eps=1e-5,
        causal=causal,
    )
    ours = Block(spec).double()
    randomise(ours)
    theirs = torch_layer(ours, spec)
    hidden = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    expected = theirs(hidden, src_mask=mask, is_causal=causal)
    assert relative_error(plainly(ours, spec, hidden), expected) < 1e-12


def test_every_second_layer_of_gpt3_looks_back_on_a_band_only():
    section = ModelSection(
        family="gpt3", vocab_size=31, max_positions=9, hidden_size=24, num_layers=4, num_heads=3, attention_band=3
    )
    ours = build_model(section).double()
    randomise(ours)
    ids = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(3))
    # For torch, True is where a query must not look: ahead, or three positions back and more.
    ahead = torch.ones(9, 9, dtype=torch.bool).triu(1)
    too_far = torch.ones(9, 9, dtype=torch.bool).tril(-3)
    expected = ours.embeddings(ids)
    for layer, block in enumerate(ours.blocks()):
        expected = torch_layer(block, ours.spec.block)(expected, src_mask=ahead | too_far if layer % 2 else ahead)
    assert relative_error(ours.encode(ids), expected) < 1e-12


def test_padding_changes_no_prediction_at_real_positions():
    section = ModelSection(family="bert", vocab_size=31, max_positions=9, hidden_size=24, num_layers=2, num_heads=3)
    ours = build_model(section).double()
    randomise(ours)
    ids = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(3))
    valid = torch.arange(9) < torch.tensor([[5], [9]])
    alone = ours(ids[:1, :5])
    padded = ours(ids, None, valid)
    assert relative_error(padded.tokens[:1, :5], alone.tokens) < 1e-12
    assert relative_error(padded.pairs[:1], alone.pairs) < 1e-12


@pytest.mark.parametrize("band", [None, 3])
def test_a_document_in_a_row_is_computed_as_if_it_were_alone(band):
    family = "gpt2" if band is None else "gpt3"
    section = ModelSection(
        family=family, vocab_size=61, hidden_size=36, num_layers=2, num_heads=3, max_positions=20, attention_band=band
    )
    model = build_model(section).double()
    randomise(model, seed=3)
    lengths = (5, 1, 8, 6)
    ids = torch.randint(0, 61, (2, sum(lengths)), generator=torch.Generator().manual_seed(0))
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(2, -1)
    with torch.no_grad():
        together = model(ids, documents=documents).tokens
        alone = torch.cat([model(text).tokens for text in ids.split(lengths, dim=1)], dim=1)
    assert relative_error(together, alone) < 1e-12


def test_poisoning_one_document_moves_no_logit_of_its_neighbours():
    section = ModelSection(vocab_size=61, hidden_size=36, num_layers=2, num_heads=3, max_positions=20)
    model = build_model(section)
    randomise(model, seed=3)
    ids = torch.randint(0, 61, (1, 20), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 6 + [1] * 7 + [2] * 7])
    poisoned = ids.clone()
    poisoned[documents == 1] = (poisoned[documents == 1] + 7) % 61
    with torch.no_grad():
        before, after = (model(tokens, documents=documents).tokens for tokens in (ids, poisoned))
    others = documents != 1
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])
    # Without documents the last one sees the poison, so that the test can fail.
    with torch.no_grad():
        assert not torch.equal(model(ids).tokens[0, 13:], model(poisoned).tokens[0, 13:])


@pytest.mark.parametrize("length", [12, 13, 15, 17, 40])
@pytest.mark.parametrize("heads", [0, 3])
def test_a_band_in_blocks_is_attention_with_a_mask(length, heads):
    band, rows = 4, torch.arange(length)
    back = rows[:, None] - rows
    mask = (back >= 0) & (back < band)
    tensors = torch.randn(3, 2, heads, length, 8, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, heads, length, 8, dtype=torch.float64)
    results = []
    for out in (
        banded_attention(*tensors.unbind(), block_mask(band, rows.device)),
        F.scaled_dot_product_attention(*tensors.unbind(), attn_mask=mask),
    ):
        (gradient,) = torch.autograd.grad(out, tensors, upstream)
        results.append((out, gradient))
    for ours, reference in zip(*results, strict=True):
        # Sums in another order.
        assert torch.allclose(ours, reference, rtol=0.0, atol=1e-14)
