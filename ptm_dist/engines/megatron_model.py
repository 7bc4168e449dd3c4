"""Our model families out of Megatron-Core's parts: its GPTModel, and an encoder with BERT's heads.

Imports Megatron-Core: to be imported where engine=megatron is asked for only.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor, nn

from ptm_dist.engines.megatron_layers import (
    LayerNorm,
    Visibility,
    keep_gradient_mode,
    layer_specs,
    sum_over_positions,
)
from ptm_dist.engines.megatron_state import unwrapped
from ptm_dist.engines.microbatch import MicroBatch
from ptm_dist.models.heads import PairHead
from ptm_dist.models.model import ModelOutput, Part, places_in_documents
from ptm_dist.models.spec import ModelSpec
from ptm_dist.models.transformer import activation


class MaskedHeadTransform(nn.Module):
    """The layer between the last block and the vocabulary in BERT's published code."""

    def __init__(self, config: TransformerConfig, spec: ModelSpec) -> None:
        super().__init__()
        self.dense = sum_over_positions(nn.Linear(config.hidden_size, config.hidden_size), config)
        self.activation = activation(spec.block.activation)
        self.norm = LayerNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[seq, batch, hidden]``, or this rank's positions of it, to the same shape."""
        return self.norm(self.activation(self.dense(hidden)))


class MaskedLanguageModel(LanguageModule):
    """A part of BERT or RoBERTa: what Megatron-Core's BertModel is with LayerNorm where the papers have it.

    Args:
        config: of Megatron-Core.
        spec: of the whole model.
        part: of it.
        vocab_size: rows of the embedding, a multiple of the tensor-parallel ranks.
        vp_stage: number of the part among those of its rank; None if it is the only one.
        visibility: of the model.
    """

    def __init__(
        self,
        config: TransformerConfig,
        spec: ModelSpec,
        part: Part,
        vocab_size: int,
        vp_stage: int | None,
        visibility: Visibility,
    ) -> None:
        super().__init__(config=config)
        self.spec = spec
        self.model_type = ModelType.encoder_or_decoder
        self.vp_stage = vp_stage
        self.pre_process, self.post_process = part.first == 0, part.end == spec.num_layers
        self.share_embeddings_and_output_weights = spec.tie_embeddings
        if self.pre_process:
            self._build_embeddings(vocab_size)
        self.encoder = TransformerBlock(
            config=config,
            spec=layer_specs(config, spec, part, visibility),
            pre_process=self.pre_process,
            post_process=self.post_process,
            vp_stage=vp_stage,
        )
        if self.post_process:
            self._build_heads(vocab_size)
        if self.pre_process or self.post_process:
            self.setup_embeddings_and_output_layer()

    def _build_embeddings(self, vocab_size: int) -> None:
        embedding = self.spec.embedding
        self.embedding = LanguageModelEmbedding(
            config=self.config,
            vocab_size=vocab_size,
            max_sequence_length=embedding.max_positions + embedding.position_offset,
            num_tokentypes=embedding.segments,
        )
        self.embedding_norm = LayerNorm(self.config, embedding.size, self.config.layernorm_epsilon)

    def _build_heads(self, vocab_size: int) -> None:
        self.lm_head = MaskedHeadTransform(self.config, self.spec)
        self.output_layer = ColumnParallelLinear(
            self.config.hidden_size,
            vocab_size,
            config=self.config,
            init_method=self.config.init_method,
            bias=True,
            skip_bias_add=False,
            gather_output=False,
            skip_weight_param_allocation=self.pre_process and self.spec.tie_embeddings,
        )
        self.pair_head = PairHead(self.config.hidden_size) if self.spec.pair_head else None

    def set_input_tensor(self, input_tensor: list[Tensor]) -> None:
        """Take the hidden states of the part before, ``[seq, batch, hidden]``."""
        self.encoder.set_input_tensor(input_tensor[0])

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, attention_mask: Tensor | None
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Predict tokens and pairs.

        Args:
            input_ids: ``[batch, seq]``, int64.
            position_ids: rows of the position embedding, ``[batch, seq]``, int64.
            segment_ids: ``[batch, seq]``, int64.
            attention_mask: False at padding, ``[batch, seq]``, bool.

        Returns: this rank's columns of the logits, ``[batch, seq, vocab_local]``, and those of pairs, ``[batch, 2]``;
            in a part without heads hidden states, ``[seq, batch, hidden]``.
        """
        hidden = None
        if self.pre_process:
            hidden = self.embedding_norm(self.embedding(input_ids, position_ids, segment_ids))
        hidden = self.encoder(hidden_states=hidden, attention_mask=attention_mask)
        if not self.post_process:
            return hidden
        weight = self.shared_embedding_or_output_weight() if self.spec.tie_embeddings else None
        tokens, _ = self.output_layer(self.lm_head(hidden), weight=weight)
        if self.pair_head is None:
            return tokens.transpose(0, 1), None
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        return tokens.transpose(0, 1), self.pair_head(hidden.transpose(0, 1))


def build_chunk(
    config: TransformerConfig,
    spec: ModelSpec,
    part: Part,
    vp_stage: int | None,
    visibility: Visibility,
    device: torch.device,
) -> nn.Module:
    """One stage of a model on `device`, its weights zero; in bfloat16 wrapped as Megatron-Core wants it."""
    size = padded_vocabulary(spec.embedding.vocab_size, config.tensor_model_parallel_size)
    if spec.block.causal:
        model = GPTModel(
            config,
            layer_specs(config, spec, part, visibility),
            vocab_size=size,
            max_sequence_length=spec.embedding.max_positions,
            pre_process=part.first == 0,
            post_process=part.end == spec.num_layers,
            share_embeddings_and_output_weights=spec.tie_embeddings,
            vp_stage=vp_stage,
        )
        keep_gradient_mode(model.decoder)
    else:
        model = MaskedLanguageModel(config, spec, part, size, vp_stage, visibility)
        keep_gradient_mode(model.encoder)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.to(device)
    return Float16Module(config, model) if config.bf16 else model


def predict(model: nn.Module, micro: MicroBatch, spec: ModelSpec) -> Any:
    """Run a stage: :class:`ModelOutput` of the last one, hidden states of the others.

    The logits are this rank's columns; those that only fill up the vocabulary are minus infinity.
    """
    places = micro.window.positions
    positions = places.expand_as(micro.input_ids)
    if spec.block.causal:
        if micro.documents is not None:
            positions = places_in_documents(micro.documents)[:, places]
        output = model(micro.input_ids, positions, micro.documents)
        return ModelOutput(_without_padding(output, spec), None) if _is_last(model) else output
    segments = torch.zeros_like(micro.input_ids) if micro.segment_ids is None else micro.segment_ids
    output = model(micro.input_ids, positions + spec.embedding.position_offset, segments, micro.valid)
    if not _is_last(model):
        return output
    tokens, pairs = output
    tokens = tokens if micro.positions is None else tokens.flatten(0, 1)[micro.positions]
    return ModelOutput(_without_padding(tokens, spec), pairs)


def padded_vocabulary(vocab_size: int, ranks: int) -> int:
    """The vocabulary filled up to a multiple of the tensor-parallel ranks, which Megatron-Core asks for."""
    return -(-vocab_size // ranks) * ranks


def _is_last(model: nn.Module) -> bool:
    return bool(unwrapped(model).post_process)


def _without_padding(logits: Tensor, spec: ModelSpec) -> Tensor:
    """Columns behind the end of the vocabulary can never be predicted, and get no gradient."""
    columns = logits.shape[-1]
    known = spec.embedding.vocab_size - parallel_state.get_tensor_model_parallel_rank() * columns
    if known >= columns:
        return logits
    return logits.masked_fill(torch.arange(columns, device=logits.device) >= known, -torch.inf)
