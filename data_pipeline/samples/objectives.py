"""From the name and the numbers of an objective to its samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.samples import ShardSamples
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.samples.masked import MaskedSamples
from data_pipeline.samples.masking import MaskingPolicy, MaskUnit
from data_pipeline.samples.packed import PackedSamples
from data_pipeline.samples.pairs import PairKind, PairSamples
from data_pipeline.shards import ShardSet

ObjectiveKind = Literal["causal", "mlm", "mlm_nsp", "mlm_sop"]
Packing = Literal["concatenate", "best_fit"]

_PAIRS: dict[ObjectiveKind, PairKind] = {"mlm_nsp": "next_sentence", "mlm_sop": "sentence_order"}


@dataclass(frozen=True)
class ObjectiveOptions:
    """What a model learns to predict; a causal objective reads `packing` and `document_attention` alone.

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
        packing: causal samples are windows of all documents joined, or rows of whole documents that fit best.
        document_attention: causal batches say to which document each position belongs.

    Raises:
        ValueError: packing or attention within documents of an objective that is not causal.
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
    packing: Packing = "concatenate"
    document_attention: bool = False

    def __post_init__(self) -> None:
        if self.kind != "causal" and (self.packing != "concatenate" or self.document_attention):
            raise ValueError(f"packing and document_attention are of the objective causal, not of {self.kind}")

    @property
    def policy(self) -> MaskingPolicy:
        """What to mask, and how."""
        return MaskingPolicy(
            self.mask_fraction, self.max_predictions, self.mask_unit, self.max_ngram, self.mask_share, self.random_share
        )


def build_samples(
    shards: ShardSet,
    objective: ObjectiveOptions,
    sequence_length: int,
    seed: int,
    source: str,
    keep_tail: bool,
    cache: Path | None = None,
) -> ShardSamples:
    """The samples that an objective makes of the text of some shards.

    Args:
        shards: the text.
        objective: what is predicted.
        sequence_length: positions of a sample.
        seed: of the run; masks and pairs depend on it.
        source: name of the data set; masks and pairs depend on it.
        keep_tail: of a causal objective without packing, also give the tokens behind the last whole sample. The
            others drop none.
        cache: folder that keeps the indexes of samples; see :mod:`data_pipeline.samples.index_cache`. None keeps
            none. Any number of data sets, objectives and processes may share it.

    Raises:
        DataError: the shards do not have what the objective needs, or one is missing or damaged.
    """
    if objective.kind == "causal":
        attention = objective.document_attention
        if objective.packing == "best_fit":
            return PackedSamples(shards, sequence_length, document_attention=attention, cache=cache)
        return CausalSamples(shards, sequence_length, keep_tail=keep_tail, document_attention=attention)
    if objective.kind == "mlm":
        return MaskedSamples(
            shards, sequence_length, objective.policy, seed=seed, source=source, copies=objective.copies, cache=cache
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
        cache=cache,
    )
