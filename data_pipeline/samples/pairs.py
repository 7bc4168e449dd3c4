"""Masked language modelling over pairs of texts: does B follow A (BERT), or are the two swapped (ALBERT)?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.samples import Sample, SampleBatch, check_indices
from data_pipeline.samples.chunks import document_chunks
from data_pipeline.samples.framing import Frame
from data_pipeline.samples.masking import MaskingPolicy
from data_pipeline.samples.randomness import Draws, KeyedDraws, Purpose, SampleKeys, uniforms
from data_pipeline.samples.reading import Stretches
from data_pipeline.shards import ShardSet

PairKind = Literal["next_sentence", "sentence_order"]

Stretch = tuple[int, int]
"""Positions [begin, end) of a shard set."""

_OBJECTIVES: dict[PairKind, str] = {"next_sentence": "mlm_nsp", "sentence_order": "mlm_sop"}


class _Choices(NamedTuple):
    """The random numbers of a pair, each in [0, 1)."""

    label: float
    short: float
    length: float
    middle: float
    other: float
    other_start: float


class PairSamples:
    """Samples ``classify A separator B separator``, each made of one chunk of a document.

    A is the chunk up to a random sentence, B the rest. With probability 1/2 the label is 1: of next-sentence
    prediction, B is then text of another document, from a random sentence on and as far as whole sentences fit; of
    sentence-order prediction, A and B have changed places. Documents of a single short sentence are in no sample.

    Args:
        shards: the text, with sentences.
        sequence_length: S, positions of a sample.
        policy: what to mask, and how.
        kind: what the label of a pair says.
        seed: of the run.
        source: name of the data set; two sources of one run are paired and masked independently.
        copies: different pairs and masks of each chunk that the epochs read in turn; 0 makes new ones in every epoch.
        short_sequence_probability: share of the samples that are cut to a random length of 2 tokens of text or more.
        cache: folder that keeps where chunks lie from run to run; None finds it anew and holds it in memory.

    Attributes:
        left_out: documents that are in no sample.

    Raises:
        DataError: the tokenizer of the shards lacks a special id, the shards have no sentences or too little text,
            or a shard is missing or damaged.
        ValueError: a share outside [0, 1].

    Sources: BERT (arXiv 1810.04805), section 3.1 and appendix A.2; ALBERT (arXiv 1909.11942), section 3.1.
    """

    def __init__(
        self,
        shards: ShardSet,
        sequence_length: int,
        policy: MaskingPolicy,
        *,
        kind: PairKind,
        seed: int,
        source: str,
        copies: int,
        short_sequence_probability: float = 0.1,
        cache: Path | None = None,
    ) -> None:
        if not 0 <= short_sequence_probability <= 1:
            raise ValueError(f"short_sequence_probability {short_sequence_probability} must lie in [0, 1]")
        if shards.num_sentences == shards.num_documents:
            raise DataError(
                f"no document in {shards.location} has two sentences, and sentence pairs need them: build the shards "
                "from text with `ptm data build`, which finds sentences, or use the objective mlm"
            )
        self._frame = Frame(shards, sequence_length, policy, texts=2)
        self._keys = SampleKeys(seed, _OBJECTIVES[kind], source, copies)
        self._kind = kind
        self._short = short_sequence_probability
        self._chunks = document_chunks(shards, self._frame.room, cache)
        self.left_out = self._chunks.left_out
        self._check_text()

    def _check_text(self) -> None:
        documents = self._frame.shards.num_documents - self.left_out
        needed = 2 if self._kind == "next_sentence" else 1
        if documents < needed:
            raise DataError(
                f"{self._frame.shards.location} has {documents} documents of two or more sentences, but "
                f"{_OBJECTIVES[self._kind]} needs {needed}: build it from more text"
            )

    @property
    def sequence_length(self) -> int:
        """Positions of every sample."""
        return self._frame.sequence_length

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids that are no text, by role."""
        return self._frame.shards.tokenizer.special_ids

    def __len__(self) -> int:
        return len(self._chunks)

    def sample(self, index: int, epoch: int) -> Sample:
        """The pair of chunk `index`, from 0, as this epoch makes and masks it.

        Raises:
            IndexError: there is no such chunk.
            DataError: a shard that it lies in is missing or damaged.
        """
        indices, epochs = np.array([index]), np.array([epoch])
        texts, _ = self._texts(indices, self._keys(indices, epochs))
        return self.batch(indices, epochs).only_sample(self._frame.document_starts(texts))

    def batch(self, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> SampleBatch:
        """The pairs of the chunks at `indices`, as their epochs make and mask them, [n] both.

        Raises:
            IndexError: there is no such chunk.
            DataError: a shard that they lie in is missing or damaged.
        """
        keys = self._keys(indices, epochs)
        texts, labels = self._texts(indices, keys)
        return self._frame.batch(texts, labels, keys)

    def samples_before(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """As of :class:`data_pipeline.samples.ShardSamples`."""
        return np.searchsorted(self._chunks.begins, positions).astype(np.int64)

    def shards_of(self, indices: NDArray[np.int64], epochs: NDArray[np.int64] | None = None) -> list[tuple[int, ...]]:
        """Numbers of the shards in which each chunk lies, and with `epochs` the text that takes the place of its end.

        Raises:
            IndexError: there is no such chunk.
        """
        check_indices(indices, len(self))
        found = self._shards_of_chunks(indices)
        if epochs is None or self._kind != "next_sentence":
            return found
        choices = self._choices(self._keys(indices, epochs))
        others = self._shards_of_chunks(self._others(indices, choices))
        foreign = (choices[:, _Choices._fields.index("label")] < 0.5).tolist()
        return [
            tuple(sorted({*own, *other})) if reads_other else own
            for own, other, reads_other in zip(found, others, foreign, strict=True)
        ]

    def _shards_of_chunks(self, chunks: NDArray[np.int64]) -> list[tuple[int, ...]]:
        begins = self._chunks.begins[chunks]
        return self._frame.shards.shards_of(begins, begins + self._chunks.lengths[chunks])

    def _choices(self, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """The numbers of each sample, in the order of :class:`_Choices`, [n, 6]."""
        return uniforms(keys[:, None], Purpose.PAIR, np.arange(len(_Choices._fields)))

    def _others(self, chunks: NDArray[np.int64], choices: NDArray[np.float64]) -> NDArray[np.int64]:
        """For each chunk one of another document, all equally likely, [n]."""
        first, last = self._chunks.siblings(chunks)
        chosen = choices[:, _Choices._fields.index("other")]
        others = (chosen * (len(self) - (last - first))).astype(np.int64)
        return np.where(others >= first, others + last - first, others)

    def _texts(self, indices: NDArray[np.int64], keys: NDArray[np.uint64]) -> tuple[list[Stretches], NDArray[np.int64]]:
        """The first and the second text of every pair, and their labels."""
        check_indices(indices, len(self))
        choices = self._choices(keys)
        others = self._others(indices, choices)
        pairs = np.empty((indices.size, 4), dtype=np.int64)
        labels = np.empty(indices.size, dtype=np.int64)
        for row, (index, other) in enumerate(zip(indices.tolist(), others.tolist(), strict=True)):
            chosen = _Choices(*choices[row].tolist())
            first, second = self._pair(index, other, chosen, KeyedDraws(keys[row], Purpose.TRIMMING))
            pairs[row] = *first, *second
            labels[row] = chosen.label < 0.5
        return [Stretches(pairs[:, 0], pairs[:, 1]), Stretches(pairs[:, 2], pairs[:, 3])], labels

    def _pair(self, index: int, other: int, chosen: _Choices, draws: Draws) -> tuple[Stretch, Stretch]:
        room = self._frame.room
        if chosen.short < self._short:
            room = 2 + int(chosen.length * (room - 1))
        first, second = self._split(index, room, chosen.middle)
        is_other = chosen.label < 0.5
        if is_other and self._kind == "next_sentence":
            second = self._elsewhere(other, room - (first[1] - first[0]), chosen.other_start)
        first, second = truncate_pair(first, second, room, draws)
        return (second, first) if is_other and self._kind == "sentence_order" else (first, second)

    def _split(self, index: int, room: int, choice: float) -> tuple[Stretch, Stretch]:
        """The sentences of a chunk that fit, at least two, parted at a random sentence."""
        begin, end = self._bounds(index)
        starts = self._starts_within(begin, end)
        if end - begin > room:
            end = _last_within(np.append(starts[1:], end), begin + room)
            starts = starts[starts < end]
        middle = _choose(starts, choice)
        return (begin, middle), (middle, end)

    def _elsewhere(self, other: int, room: int, choice: float) -> Stretch:
        """Whole sentences of another document that fill the room, at least one even if it is longer."""
        begin, end = self._bounds(other)
        begin = _choose(np.append(begin, self._starts_within(begin, end)), choice)
        if other + 1 < len(self) and self._chunks.documents[other + 1] == self._chunks.documents[other]:
            end = self._bounds(other + 1)[1]
        return begin, _last_within(np.append(self._frame.shards.sentence_starts(begin + 1, end), end), begin + room)

    def _bounds(self, chunk: int) -> Stretch:
        begin = int(self._chunks.begins[chunk])
        return begin, begin + int(self._chunks.lengths[chunk])

    def _starts_within(self, begin: int, end: int) -> NDArray[np.int64]:
        """Where a second part may start: at a sentence; within a single long sentence at a word, or at any token."""
        starts = self._frame.shards.sentence_starts(begin + 1, end)
        if not starts.size:
            starts = begin + 1 + np.flatnonzero(self._frame.shards.word_starts(begin + 1, end))
        return starts if starts.size else np.arange(begin + 1, end)


def truncate_pair(first: Stretch, second: Stretch, room: int, draws: Draws) -> tuple[Stretch, Stretch]:
    """Cut a pair to `room` tokens: token by token from the longer text, from its front or its back at random.

    Neither becomes empty if the room is at least 2. The same as the loop of Google's BERT code, without the loop.
    """
    sizes = first[1] - first[0], second[1] - second[0]
    if sum(sizes) <= room:
        return first, second
    shorter = min(sizes)
    if 2 * shorter <= room:
        kept = (shorter, room - shorter) if sizes[0] <= sizes[1] else (room - shorter, shorter)
    else:
        kept = room - room // 2, room // 2
    return _trim(first, kept[0], draws), _trim(second, kept[1], draws)


def _trim(text: Stretch, size: int, draws: Draws) -> Stretch:
    from_front = int((draws.random(text[1] - text[0] - size) < 0.5).sum())
    return text[0] + from_front, text[0] + from_front + size


def _last_within(ends: NDArray[np.int64], limit: int) -> int:
    """The last of the ascending `ends` up to the limit; the first if all lie behind it."""
    return int(ends[max(int(np.searchsorted(ends, limit, side="right")) - 1, 0)])


def _choose(values: NDArray[np.int64], choice: float) -> int:
    """One of the values, all equally likely for a uniform choice in [0, 1)."""
    return int(values[int(choice * values.size)])
