"""Masked language modelling over full sentences: classify, sentences, separator (RoBERTa)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.samples import IGNORE_INDEX, Sample, SampleBatch, check_indices
from data_pipeline.samples.chunks import full_sentences
from data_pipeline.samples.framing import Frame
from data_pipeline.samples.masking import MaskingPolicy
from data_pipeline.samples.randomness import SampleKeys
from data_pipeline.samples.reading import Stretches
from data_pipeline.shards import ShardSet


class MaskedSamples:
    """Whole sentences up to the length of a sample, over document ends, each token of the data in one sample.

    The end-of-document id of each document stays in the text and parts it from the next.

    Args:
        shards: the text.
        sequence_length: S, positions of a sample.
        policy: what to mask, and how.
        seed: of the run.
        source: name of the data set; two sources of one run are masked independently.
        copies: differently masked copies of each sample that the epochs read in turn; 0 masks anew in every epoch.
        cache: folder that keeps where samples begin from run to run; None finds it anew and holds it in memory.

    Raises:
        DataError: the tokenizer of the shards lacks a special id, or a shard is missing or damaged.

    Source: RoBERTa (arXiv 1907.11692), section 4.
    """

    def __init__(
        self,
        shards: ShardSet,
        sequence_length: int,
        policy: MaskingPolicy,
        *,
        seed: int,
        source: str,
        copies: int,
        cache: Path | None = None,
    ) -> None:
        self._frame = Frame(shards, sequence_length, policy, texts=1)
        self._keys = SampleKeys(seed, "mlm", source, copies)
        self._bounds = full_sentences(shards, self._frame.room, cache)

    @property
    def sequence_length(self) -> int:
        """Positions of every sample."""
        return self._frame.sequence_length

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids that are no text, by role."""
        return self._frame.shards.tokenizer.special_ids

    def __len__(self) -> int:
        return self._bounds.size - 1

    def sample(self, index: int, epoch: int) -> Sample:
        """Chunk `index`, from 0, with the masks of this epoch.

        Raises:
            IndexError: there is no such chunk.
            DataError: the shard that it lies in is missing or damaged.
        """
        indices = np.array([index])
        return self.batch(indices, np.array([epoch])).only_sample(self._frame.document_starts([self._texts(indices)]))

    def batch(self, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> SampleBatch:
        """The chunks at `indices` with the masks of their epochs, [n] both.

        Raises:
            IndexError: there is no such chunk.
            DataError: a shard that they lie in is missing or damaged.
        """
        no_pairs = np.full(indices.size, IGNORE_INDEX, dtype=np.int64)
        return self._frame.batch([self._texts(indices)], no_pairs, self._keys(indices, epochs))

    def samples_before(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """As of :class:`data_pipeline.samples.ShardSamples`."""
        return np.searchsorted(self._bounds[:-1], positions).astype(np.int64)

    def shards_of(self, indices: NDArray[np.int64], epochs: NDArray[np.int64] | None = None) -> list[tuple[int, ...]]:
        """Numbers of the shards in which each chunk lies: always a single one."""
        texts = self._texts(indices)
        return self._frame.shards.shards_of(texts.begins, texts.ends)

    def _texts(self, indices: NDArray[np.int64]) -> Stretches:
        check_indices(indices, len(self))
        return Stretches(self._bounds[indices], self._bounds[indices + 1])
