"""The names and shapes that Hugging Face ``transformers`` gives to the same weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ptm_dist.models.spec import ModelSpec

_BLOCK_NAMES = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}
_OUTER_NAMES = {
    "embeddings.token.weight": "transformer.wte.weight",
    "embeddings.position.weight": "transformer.wpe.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}


def to_gpt2(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Whole weights, or their gradients, by canonical name to those of ``GPT2LMHeadModel``.

    Hugging Face stores matrices as ``[in, out]`` and orders the fused projection ``[(query, key, value), head]``.
    A tied head is left out, as in its files.
    """
    return {_gpt2_name(name): _gpt2_layout(name, tensor, spec) for name, tensor in tensors.items()}


def _gpt2_name(name: str) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    _, layer, *module, kind = name.split(".")
    return f"transformer.h.{layer}.{_BLOCK_NAMES['.'.join(module)]}.{kind}"


def _gpt2_layout(name: str, tensor: Tensor, spec: ModelSpec) -> Tensor:
    if ".attention.qkv." in name:
        heads, head_size = spec.block.num_heads, spec.block.head_size
        by_head = tensor.view(heads, 3, head_size, *tensor.shape[1:])
        tensor = by_head.transpose(0, 1).reshape(tensor.shape)
    is_matrix = name.startswith("layers.") and tensor.dim() == 2
    return tensor.t().contiguous() if is_matrix else tensor
