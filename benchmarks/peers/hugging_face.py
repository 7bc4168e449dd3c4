"""``GPT2LMHeadModel`` and ``BertForPreTraining`` of Hugging Face's transformers, without dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from data_pipeline.batches import StepBatch
from ptm_dist.models.hf import hf_config
from ptm_dist.recipe.schema import ModelSection

_SPECIAL_IDS = {"unknown": 3, "pad": 0, "end_of_document": 2, "classify": 1, "separator": 2, "mask": 4}


class HuggingFace(nn.Module):
    """The class that holds a model, and its own loss."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        import transformers

        values = hf_config(model, _SPECIAL_IDS)
        model_class = getattr(transformers, values["architectures"][0])
        self.inner: Any = model_class(model_class.config_class(**values, use_cache=False))
        self.is_encoder = values["model_type"] == "bert"

    def forward(self, batch: StepBatch) -> Tensor:
        """The loss that the class computes, as :class:`transformers.Trainer` takes it."""
        if not self.is_encoder:
            return self.inner(batch.inputs, labels=batch.labels, shift_labels=batch.labels).loss
        places = batch.inputs.new_ones(batch.inputs.shape).cumsum(1) - 1
        return self.inner(
            batch.inputs,
            attention_mask=(places < batch.lengths[:, None]).long(),
            token_type_ids=batch.segments,
            labels=batch.labels,
            next_sentence_label=batch.pair_labels,
        ).loss

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights by the class's names."""
        report = self.inner.load_state_dict(weights, strict=False)
        self.inner.tie_weights()
        unknown = set(report.missing_keys) - set(self.inner.all_tied_weights_keys)
        if unknown or report.unexpected_keys:
            raise ValueError(f"weights of {type(self.inner).__name__} that do not fit: {report}")
