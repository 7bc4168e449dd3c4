"""Stretches of a shard set, of any lengths, into the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards import ShardSet


@dataclass(frozen=True)
class Stretches:
    """Tokens [begin, end) of a shard set, n times.

    Attributes:
        begins: [n], int64.
        ends: [n], int64; not before `begins`.
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens of each, [n], int64."""
        return self.ends - self.begins


def read_tokens(shards: ShardSet, text: Stretches, places: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Write the tokens of each stretch where it belongs.

    Args:
        shards: the text.
        text: what to read.
        places: position in `out`, row after row, of the first token of each, [n].
        out: where to, any shape, contiguous.

    Raises:
        DataError: a shard is missing or damaged.
    """
    flat = out.reshape(-1)
    for place, begin, end in zip(places.tolist(), text.begins.tolist(), text.ends.tolist(), strict=True):
        flat[place : place + end - begin] = shards.tokens(begin, end)


def read_word_starts(shards: ShardSet, text: Stretches, places: NDArray[np.int64], out: NDArray[np.bool_]) -> None:
    """Write which tokens of each stretch start a word; as :func:`read_tokens`."""
    flat = out.reshape(-1)
    for place, begin, end in zip(places.tolist(), text.begins.tolist(), text.ends.tolist(), strict=True):
        flat[place : place + end - begin] = shards.word_starts(begin, end)
