"""One or two stretches of text -> a masked sample: classify, A, separator; of a pair B, separator too; then padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.order import derive_key
from data_pipeline.samples import IGNORE_INDEX, Sample
from data_pipeline.samples.masking import MaskingPolicy, Vocabulary, mask_tokens
from data_pipeline.shards import ShardSet

Stretch = tuple[int, int]
"""Positions [begin, end) of a shard set."""

_ROLES = ("pad", "classify", "separator", "mask")


@dataclass(frozen=True)
class SampleKey:
    """What the random choices of a sample depend on, beside its index and the epoch.

    Attributes:
        seed: of the run.
        objective: two objectives over the same text choose independently.
        source: name of the data set.
        copies: different random choices made of a sample; epoch e reads copy e mod `copies` (static masking).
            0 chooses anew in every epoch (dynamic masking).

    Raises:
        ValueError: a negative number of copies.
    """

    seed: int
    objective: str
    source: str
    copies: int

    def __post_init__(self) -> None:
        if self.copies < 0:
            raise ValueError(f"{self.copies} copies of a sample; 0 makes another one in every epoch")

    def generator(self, index: int, epoch: int) -> np.random.Generator:
        """The random numbers of one sample in one epoch, from their first on."""
        copy = epoch % self.copies if self.copies else epoch
        key = derive_key(self.seed, self.objective, self.source, copy, index)
        return np.random.Generator(np.random.Philox(key=key))


class Frame:
    """Puts special ids around text, and masks it.

    Args:
        shards: the text; its tokenizer needs ids for pad, classify, separator and mask.
        sequence_length: S, positions of a sample.
        policy: what to mask, and how.
        texts: stretches in a sample, 1 or 2.

    Attributes:
        shards: the text.
        sequence_length: S.
        room: tokens of text in a sample, at most.

    Raises:
        DataError: the tokenizer lacks an id, or a sample has no room for text.
    """

    def __init__(self, shards: ShardSet, sequence_length: int, policy: MaskingPolicy, texts: int) -> None:
        ids = shards.tokenizer.special_ids
        missing = [role for role in _ROLES if role not in ids]
        if missing:
            raise DataError(
                f"the tokenizer of {shards.directory} has no special id for {', '.join(missing)}, which masked "
                "language modelling needs: train one with `ptm tokenizer train` and build the shards again with "
                "`ptm data build`"
            )
        self.shards = shards
        self.sequence_length = sequence_length
        self.room = sequence_length - 1 - texts
        if self.room < texts:
            raise DataError(
                f"data.sequence_length={sequence_length} leaves no room for text beside {1 + texts} special tokens; "
                f"use at least {1 + 2 * texts}"
            )
        self._policy = policy
        self._vocabulary = Vocabulary(shards.tokenizer.vocab_size, frozenset(ids.values()), ids["mask"])
        self._pad, self._classify, self._separator = ids["pad"], ids["classify"], ids["separator"]

    def sample(self, texts: Sequence[Stretch], pair_label: int, rng: np.random.Generator) -> Sample:
        """The masked sample of one or two stretches of text, of at most `room` tokens together.

        Raises:
            DataError: a shard that they lie in is missing or damaged.
        """
        tokens = np.full(self.sequence_length, self._pad, dtype=np.int64)
        segments = np.zeros(self.sequence_length, dtype=np.int64)
        word_starts = np.ones(self.sequence_length, dtype=np.bool_)
        starts = [np.empty(0, dtype=np.int64)]
        tokens[0] = self._classify
        place = 1
        for number, (begin, end) in enumerate(texts):
            stop = place + end - begin
            tokens[place:stop] = self.shards.tokens(begin, end)
            tokens[stop] = self._separator
            word_starts[place:stop] = self.shards.word_starts(begin, end)
            segments[place : stop + 1] = number
            starts.append(self.shards.document_starts(begin, end) - begin + place)
            place = stop + 1
        inputs, labels = self._masked(tokens, word_starts, place, rng)
        return Sample(inputs, labels, np.concatenate(starts), place, segments, pair_label)

    def _masked(
        self, tokens: NDArray[np.int64], word_starts: NDArray[np.bool_], length: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        text = tokens[:length]
        maskable = ~self._vocabulary.is_special[text]
        labels = np.full(tokens.size, IGNORE_INDEX, dtype=np.int64)
        tokens[:length], labels[:length] = mask_tokens(
            text, maskable, word_starts[:length], self._policy, self._vocabulary, rng
        )
        return tokens, labels
