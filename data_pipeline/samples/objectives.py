"""From the name and the numbers of an objective to its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_pipeline.samples import Samples
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.samples.masked import MaskedSamples
from data_pipeline.samples.masking import MaskingPolicy, MaskUnit
from data_pipeline.samples.pairs import PairKind, PairSamples
from data_pipeline.shards import ShardSet

ObjectiveKind = Literal["causal", "mlm", "mlm_nsp", "mlm_sop"]

_PAIRS: dict[ObjectiveKind, PairKind] = {"mlm_nsp": "next_sentence", "mlm_sop": "sentence_order"}


@dataclass(frozen=True)
class ObjectiveOptions:
    """What a model learns to predict; a causal objective reads none of the numbers.

    Attributes:
        kind: next tokens, masked tokens, or masked tokens with next-sentence or sentence-order prediction.
        mask_fraction: share of a sequence's tokens to predict.
        max_predictions: at most so many of one sequence; None for no limit.
        mask_unit: what is masked as a whole.
        max_ngram: words of the longest n-gram.
        mask_share: share of the predicted tokens that become the mask id.
        random_share: share that become a random id; the rest stay.
        copies: differently masked copies of a sample (static masking); 0 masks anew in every epoch (dynamic).
        short_sequence_probability: share of the pairs that are cut to a random length.
    """

    kind: ObjectiveKind
    mask_fraction: float = 0.15
    max_predictions: int | None = None
    mask_unit: MaskUnit = "token"
    max_ngram: int = 3
    mask_share: float = 0.8
    random_share: float = 0.1
    copies: int = 0
    short_sequence_probability: float = 0.1

    @property
    def policy(self) -> MaskingPolicy:
        """What to mask, and how."""
        return MaskingPolicy(
            self.mask_fraction, self.max_predictions, self.mask_unit, self.max_ngram, self.mask_share, self.random_share
        )


def build_samples(
    shards: ShardSet, objective: ObjectiveOptions, sequence_length: int, seed: int, source: str, keep_tail: bool
) -> Samples:
    """The samples that an objective makes of the text of some shards.

    Args:
        shards: the text.
        objective: what is predicted.
        sequence_length: positions of a sample.
        seed: of the run; masks and pairs depend on it.
        source: name of the data set; masks and pairs depend on it.
        keep_tail: of a causal objective, also give the tokens behind the last whole sample. The others drop none.

    Raises:
        DataError: the shards do not have what the objective needs, or one is missing or damaged.
    """
    if objective.kind == "causal":
        return CausalSamples(shards, sequence_length, keep_tail=keep_tail)
    if objective.kind == "mlm":
        return MaskedSamples(
            shards, sequence_length, objective.policy, seed=seed, source=source, copies=objective.copies
        )
    return PairSamples(
        shards,
        sequence_length,
        objective.policy,
        kind=_PAIRS[objective.kind],
        seed=seed,
        source=source,
        copies=objective.copies,
        short_sequence_probability=objective.short_sequence_probability,
    )
