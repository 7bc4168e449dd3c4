"""Small models of every class of transformers that ours can be, with the same random weights on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptm_dist.models import LanguageModel, build_model
from ptm_dist.models.hf import hf_config, to_hf
from ptm_dist.recipe.schema import Family, ModelSection

SPECIAL_IDS = {"unknown": 3, "pad": 1, "end_of_document": 2, "classify": 0, "separator": 2, "mask": 4}
VOCAB, LENGTH = 101, 17
_ODD = {"vocab_size": VOCAB, "max_positions": LENGTH, "hidden_size": 36, "num_heads": 3, "num_layers": 3}
_NARROW = {"embedding_size": 20, "num_layers": 4, "ffn_hidden_size": 50}

SECTIONS = {
    "gpt1": ModelSection(family=Family.GPT1, **_ODD),
    "gpt1-untied": ModelSection(family=Family.GPT1, tie_embeddings=False, **_ODD),
    "gpt2": ModelSection(family=Family.GPT2, ffn_hidden_size=50, **_ODD),
    "gpt2-erf-untied": ModelSection(family=Family.GPT2, activation="gelu_erf", tie_embeddings=False, **_ODD),
    "gpt3-dense": ModelSection(family=Family.GPT3, attention_band=0, **_ODD),
    "bert-tanh": ModelSection(family=Family.BERT, ffn_hidden_size=50, **_ODD),
    "bert-erf-untied": ModelSection(family=Family.BERT, activation="gelu_erf", tie_embeddings=False, **_ODD),
    "roberta": ModelSection(family=Family.ROBERTA, ffn_hidden_size=50, **_ODD),
    "roberta-untied": ModelSection(family=Family.ROBERTA, tie_embeddings=False, **_ODD),
    "albert-tanh": ModelSection(family=Family.ALBERT, **_ODD | _NARROW),
    "albert-erf-2-groups": ModelSection(
        family=Family.ALBERT, activation="gelu_erf", layer_groups=2, **_ODD | _NARROW | {"tie_embeddings": False}
    ),
}
ONE_PER_CLASS = ("gpt1", "gpt2", "bert-tanh", "roberta", "albert-erf-2-groups")


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Every parameter, biases and norms included: the usual zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def our_model(section: ModelSection, dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = build_model(section).to(dtype).eval()
    randomise(model)
    return model


def their_model(ours: LanguageModel, section: ModelSection, **options: Any) -> Any:
    """The class of transformers that a section is, with the weights of `ours`."""
    import transformers

    values = hf_config(section, SPECIAL_IDS)
    model_class = getattr(transformers, values["architectures"][0])
    config = model_class.config_class(**values, **options)
    theirs = model_class(config).to(next(ours.parameters()).dtype).eval()
    report = theirs.load_state_dict(to_hf(dict(ours.named_parameters()), section), strict=False)
    theirs.tie_weights()
    assert not report.unexpected_keys
    assert set(report.missing_keys) <= theirs.all_tied_weights_keys.keys()
    return theirs


@dataclass(frozen=True)
class Problem:
    """What both models read and predict; encoders see padding on the right and, with pairs, segments."""

    ids: Tensor
    segments: Tensor
    valid: Tensor
    positions: Tensor | None
    targets: Tensor
    pair_targets: Tensor

    @classmethod
    def of(cls, section: ModelSection, seed: int = 1) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        causal = section.family in (Family.GPT1, Family.GPT2, Family.GPT3)
        lengths = torch.tensor([LENGTH] * 3 if causal else [LENGTH, 12, 5])
        places = torch.arange(LENGTH)
        valid = places < lengths[:, None]
        ids = torch.randint(5, VOCAB, (3, LENGTH), generator=generator)
        targets = torch.randint(5, VOCAB, (3, LENGTH), generator=generator).flatten()
        # Three predictions in each row, none of them on padding.
        positions = torch.tensor([0, 4, 16, 17 + 2, 17 + 3, 17 + 11, 34 + 1, 34 + 2, 34 + 4])
        return cls(
            ids=torch.where(valid, ids, SPECIAL_IDS["pad"]),
            segments=((places >= lengths[:, None] // 2) & valid & (section.family is not Family.ROBERTA)).long(),
            valid=valid,
            positions=None if causal else positions,
            targets=targets if causal else targets[positions],
            pair_targets=torch.tensor([0, 1, 1]),
        )

    def ours(self, model: LanguageModel) -> tuple[Tensor, Tensor | None]:
        """Our logits of the predicted tokens, [n, vocab], and of the pairs, [batch, 2]."""
        if self.positions is None:
            return model(self.ids).tokens.flatten(0, 1), None
        segments = self.segments if model.spec.embedding.segments > 1 else None
        return model(self.ids, segments, self.valid, self.positions)

    def theirs(self, model: Any, **labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Their logits at the same places."""
        output = self.their_output(model, **labels)
        if self.positions is None:
            return output.logits.flatten(0, 1), None
        pairs = output.get("seq_relationship_logits", output.get("sop_logits"))
        tokens = output.logits if pairs is None else output.prediction_logits
        return tokens.flatten(0, 1)[self.positions], pairs

    def their_output(self, model: Any, **labels: Tensor) -> Any:
        if self.positions is None:
            return model(self.ids, **labels)
        mask = self.valid.long()
        return model(self.ids, attention_mask=mask, token_type_ids=self.segments, **labels)

    def loss(self, tokens: Tensor, pairs: Tensor | None) -> Tensor:
        """Mean over tokens plus mean over pairs, by torch."""
        loss = F.cross_entropy(tokens, self.targets)
        return loss if pairs is None else loss + F.cross_entropy(pairs, self.pair_targets)

    def their_labels(self, model: Any) -> dict[str, Tensor]:
        """The arguments with which their class computes its loss by itself."""
        if self.positions is None:
            return {"labels": self.ids}
        labels = torch.full((self.ids.numel(),), -100).index_put((self.positions,), self.targets)
        found = {"labels": labels.view_as(self.ids)}
        name = {"BertForPreTraining": "next_sentence_label", "AlbertForPreTraining": "sentence_order_label"}
        if (pair_label := name.get(type(model).__name__)) is not None:
            found[pair_label] = self.pair_targets
        return found
