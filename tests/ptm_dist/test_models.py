"""Models against implementations we did not write."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptm_dist.models import build_model, model_spec
from ptm_dist.models.hf import to_gpt2
from ptm_dist.models.spec import Activation, BlockSpec, NormPosition
from ptm_dist.models.transformer import Block
from ptm_dist.recipe.schema import ModelSection

PUBLISHED_GPT2 = {
    (12, 768, 12): 124_439_808,
    (24, 1024, 16): 354_823_168,
    (36, 1280, 20): 774_030_080,
    (48, 1600, 25): 1_557_611_200,
}


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Every parameter, biases and norms included: the usual zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize(("shape", "count"), PUBLISHED_GPT2.items())
def test_gpt2_has_the_published_number_of_parameters(shape, count):
    layers, hidden, heads = shape
    section = ModelSection(vocab_size=50257, hidden_size=hidden, num_layers=layers, num_heads=heads)
    with torch.device("meta"):
        model = build_model(section)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gpt2_equals_hugging_face_in_logits_loss_and_every_gradient(tied, implementation):
    transformers = pytest.importorskip("transformers")
    section = ModelSection(
        vocab_size=101, max_positions=17, hidden_size=36, num_layers=3, num_heads=3, tie_embeddings=tied
    )
    spec = model_spec(section)
    ours = build_model(section).double()
    randomise(ours)
    config = transformers.GPT2Config(
        vocab_size=101,
        n_positions=17,
        n_embd=36,
        n_layer=3,
        n_head=3,
        tie_word_embeddings=tied,
        attn_implementation=implementation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    missing = theirs.load_state_dict(to_gpt2(dict(ours.named_parameters()), spec), strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= ({"lm_head.weight"} if tied else set())
    theirs.tie_weights()

    ids = torch.randint(0, 101, (2, 17), generator=torch.Generator().manual_seed(1))
    our_logits, their_logits = ours(ids), theirs(ids).logits
    # Their own loss is computed in float32: take it from their logits instead.
    losses = [
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) for logits in (our_logits, their_logits)
    ]
    for loss in losses:
        loss.backward()
    our_gradients = to_gpt2({name: p.grad for name, p in ours.named_parameters()}, spec)
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}

    assert relative_error(our_logits, their_logits) < 1e-12
    assert abs(losses[0] - losses[1]) / losses[1] < 1e-12
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        # The gradient of the whole fused bias is compared: its key part alone is zero up to rounding.
        assert relative_error(our_gradients[name], gradient) < 1e-12, name


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
    approximate = "tanh" if activation is Activation.GELU_TANH else "none"
    theirs = nn.TransformerEncoderLayer(
        24,
        3,
        dim_feedforward=50,
        dropout=0.0,
        activation=lambda x: F.gelu(x, approximate=approximate),
        norm_first=position is NormPosition.PRE,
        batch_first=True,
        dtype=torch.float64,
    )
    with torch.no_grad():
        in_order = [p.view(3, 3, 8, -1).transpose(0, 1).reshape(p.shape) for p in ours.attention.qkv.parameters()]
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
    hidden = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    expected = theirs(hidden, src_mask=mask, is_causal=causal)
    assert relative_error(ours(hidden), expected) < 1e-12
