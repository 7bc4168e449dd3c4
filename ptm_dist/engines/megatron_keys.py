"""Parameter names: Megatron-Core's and ours."""

from __future__ import annotations

import re

from ptm_dist.models.spec import ModelSpec, NormPosition

_LAYER = re.compile(r"(?:decoder|encoder)\.layers\.(\d+)\.(.+)")
_OWN_LAYER = re.compile(r"layers\.(\d+)\.(.+)")

_IN_BLOCK = {
    "self_attention.linear_qkv": "attention.qkv",
    "self_attention.linear_proj": "attention.output",
    "mlp.linear_fc1": "ffn.up",
    "mlp.linear_fc2": "ffn.down",
}
_NORMS = {
    NormPosition.PRE: {"input_layernorm": "attention_norm", "pre_mlp_layernorm": "ffn_norm"},
    NormPosition.POST: {"self_attn_bda.norm": "attention_norm", "mlp_bda.norm": "ffn_norm"},
}
_OUTSIDE = {
    "embedding.word_embeddings": "embeddings.token",
    "embedding.position_embeddings": "embeddings.position",
    "embedding.tokentype_embeddings": "embeddings.segment",
    "embedding_norm": "embeddings.norm",
    "decoder.final_layernorm": "head.norm",
    "lm_head.dense": "head.dense",
    "lm_head.norm": "head.norm",
    "output_layer": "head.decoder",
    "pair_head.pooler": "pair_head.pooler",
    "pair_head.classifier": "pair_head.classifier",
}


def canonical_name(name: str, spec: ModelSpec, first_layer: int) -> str:
    """Our name of a parameter of one of this engine's models.

    Args:
        name: as in its ``named_parameters``.
        spec: of the whole model.
        first_layer: of the part of the model that the parameter is in.
    """
    if layer := _LAYER.fullmatch(name):
        module, kind = layer[2].rsplit(".", 1)
        own = (_IN_BLOCK | _NORMS[spec.block.norm_position])[module]
        return f"layers.{int(layer[1]) + first_layer}.{own}.{kind}"
    if spec.tie_embeddings and name == "output_layer.weight":
        return "embeddings.token.weight"
    module, kind = name.rsplit(".", 1)
    return f"{_OUTSIDE[module]}.{kind}"


def megatron_name(name: str, spec: ModelSpec) -> str:
    """The other way round, in a whole model: ``decoder.layers.3.mlp.linear_fc1.weight`` for ``layers.3.ffn.up.weight``.

    Args:
        name: ours.
        spec: of the model.
    """
    stack = "decoder" if spec.block.causal else "encoder"
    if layer := _OWN_LAYER.fullmatch(name):
        module, kind = layer[2].rsplit(".", 1)
        theirs = {own: other for other, own in (_IN_BLOCK | _NORMS[spec.block.norm_position]).items()}[module]
        return f"{stack}.layers.{layer[1]}.{theirs}.{kind}"
    module, kind = name.rsplit(".", 1)
    if module == "head.norm":
        return f"{'decoder.final_layernorm' if spec.block.causal else 'lm_head.norm'}.{kind}"
    return f"{({own: other for other, own in _OUTSIDE.items()})[module]}.{kind}"
