"""Layer specifications for Megatron-Core that compute what our blocks compute.

Imports Megatron-Core: to be imported where engine=megatron is asked for only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from ptm_dist.models.attention import Mixer, SdpaMixer, Sight
from ptm_dist.models.model import Part
from ptm_dist.models.spec import ModelSpec, NormPosition
from ptm_dist.parallel.context import context_mixer, window
from ptm_dist.parallel.mesh import RankGroup


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, whose gradients Megatron-Core sums up where sequence parallelism splits positions."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class AddAndNorm(nn.Module):
    """``norm(x + f(x))``: stands where Megatron-Core adds bias, dropout and residual."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(config, hidden_size, eps)

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor], Tensor, float], Tensor]:
        """What to do with an output and its bias, the residual, and a probability of dropout that is 0."""
        return self._add

    def _add(self, output_and_bias: tuple[Tensor, Tensor], residual: Tensor, dropout: float) -> Tensor:
        output, bias = output_and_bias
        return self.norm(residual + (output + bias))


class Visibility:
    """Who sees whom, worked out once for all layers and stages that ask for the same micro-batch.

    Args:
        causal: positions see earlier ones only.
        context: ranks that share each sequence.
        method: how they attend to each other's positions.
    """

    def __init__(self, causal: bool, context: RankGroup, method: Literal["ring", "ulysses"]) -> None:
        self.causal = causal
        self.mixer: Mixer = context_mixer(method, context) if context.size > 1 else SdpaMixer()
        self._context = context
        self._known: dict[tuple[int, int], tuple[Tensor | None, Any]] = {}

    def of(self, band: int, mask: Tensor | None, length: int, device: torch.device) -> Any:
        """What the mixer wants to know.

        Args:
            band: how far back a position sees; 0: to the start.
            mask: see :meth:`MixedAttention.forward`.
            length: positions of a row on this rank, as many as on the others.
            device: of the positions.
        """
        known, visible = self._known.get((band, length), (None, None))
        if visible is None or not _same(known, mask):
            sight = Sight(self.causal, band, **{"documents" if self.causal else "valid": mask})
            visible = self.mixer.prepare(sight, window(length * self._context.size, self._context, device))
            self._known[band, length] = mask, visible
        return visible


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two masks, the first of which is still alive, are one in memory."""
    if one is None or other is None:
        return one is other
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


class MixedAttention(nn.Module):
    """Attention proper over this rank's heads by the mixer that our own models use.

    Args:
        visibility: of the model.
        band: how far back a position sees; 0: to the start.
        others: what Megatron-Core tells every attention, which the arguments above and the shapes say already.
    """

    def __init__(self, *, visibility: Visibility, band: int, **others: Any) -> None:
        super().__init__()
        self.visibility = visibility
        self.band = band

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
    ) -> Tensor:
        """Scaled dot-product attention.

        Args:
            query: ``[n, batch, heads, head_size]``; keys and values have the same shape.
            key: see query.
            value: see query.
            attention_mask: of whole sequences: which document each token is of in a causal model, ``[batch, seq]``,
                int64, else False at padding, ``[batch, seq]``, bool; None: one document, no padding.
            others: what Megatron-Core's attention takes besides.

        Returns: ``[n, batch, heads * head_size]``.
        """
        visible = self.visibility.of(self.band, attention_mask, query.shape[0], query.device)
        query, key, value = (each.permute(1, 2, 0, 3) for each in (query, key, value))
        mixed = self.visibility.mixer.mix(query, key, value, visible)
        return mixed.permute(2, 0, 1, 3).flatten(2)


def layer_specs(
    config: TransformerConfig, spec: ModelSpec, part: Part, visibility: Visibility
) -> TransformerBlockSubmodules:
    """The layers of a part of a model, and the LayerNorm that Megatron-Core puts behind pre-LayerNorm layers."""
    pre = spec.block.norm_position is NormPosition.PRE
    layers = [_layer_spec(config, spec, spec.band_of(layer), visibility) for layer in range(part.first, part.end)]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=LayerNorm if pre else None)


def _layer_spec(config: TransformerConfig, spec: ModelSpec, band: int, visibility: Visibility) -> ModuleSpec:
    block = spec.block
    pre = block.norm_position is NormPosition.PRE
    sizes = {"config": config, "hidden_size": block.hidden_size, "eps": block.layer_norm_eps}
    add = get_bias_dropout_add if pre else ModuleSpec(module=AddAndNorm, params=sizes)
    norm = LayerNorm if pre else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=partial(MixedAttention, visibility=visibility, band=band),
        linear_proj=RowParallelLinear,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    mask = AttnMaskType.causal if block.causal else AttnMaskType.padding
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(module=SelfAttention, params={"attn_mask_type": mask}, submodules=attention),
            self_attn_bda=add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=add,
            # The names of Megatron-Core's checkpoints, which are those of Transformer Engine's layers.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )


def keep_gradient_mode(block: TransformerBlock) -> None:
    """Let the layers add residuals without a graph where there is none: in validation, and before a recomputation."""
    for layer in block.layers:
        layer.bias_dropout_add_exec_handler = nullcontext


def sum_over_positions(module: nn.Module, config: TransformerConfig) -> nn.Module:
    """Mark the parameters of a module that sees a range of positions: their gradients are to be summed up."""
    for parameter in module.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return module
