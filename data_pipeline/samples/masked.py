"""Masked language modelling over full sentences: classify, sentences, separator (RoBERTa)."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.samples import IGNORE_INDEX, Sample
from data_pipeline.samples.chunks import full_sentences
from data_pipeline.samples.framing import Frame, SampleKey
from data_pipeline.samples.masking import MaskingPolicy
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

    Raises:
        DataError: the tokenizer of the shards lacks a special id, or a shard is missing or damaged.

    Source: RoBERTa (arXiv 1907.11692), section 4.
    """

    def __init__(
        self, shards: ShardSet, sequence_length: int, policy: MaskingPolicy, *, seed: int, source: str, copies: int
    ) -> None:
        self._frame = Frame(shards, sequence_length, policy, texts=1)
        self._key = SampleKey(seed, "mlm", source, copies)
        self._bounds = full_sentences(shards, self._frame.room)

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
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is outside [0, {len(self)})")
        begin, end = self._bounds[index : index + 2].tolist()
        return self._frame.sample([(begin, end)], IGNORE_INDEX, self._key.generator(index, epoch))
