"""Where documents, sentences and words start in a shard: what sample indexes are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.shards import format as fmt
from data_pipeline.shards.errors import BrokenShard, Damage
from data_pipeline.shards.files import MemberFiles
from data_pipeline.shards.manifest import ShardEntry
from data_pipeline.shards.open_shard import OpenShard


@dataclass(frozen=True)
class Structure:
    """Where things start in one shard; positions count from its first token.

    Attributes:
        first_token: position of the shard's first token in the whole set.
        documents: where each document starts, then the number of tokens, [documents + 1], int64.
        sentences: where each sentence starts, then the number of tokens, [sentences + 1], int32.
        word_start_bits: one bit for each token, the lowest of a byte first, [ceil(tokens / 8)], uint8.
    """

    first_token: int
    documents: NDArray[np.int64]
    sentences: NDArray[np.int32]
    word_start_bits: NDArray[np.uint8]

    @classmethod
    def of_shard(cls, first_token: int, shard: OpenShard) -> Structure:
        """The structure of a mapped shard, no copy.

        Raises: BrokenShard if a block of it is damaged.
        """
        return cls(first_token, shard.document_offsets(), shard.sentence_offsets(), shard.member(fmt.WORD_STARTS))

    @classmethod
    def fetched(cls, first_token: int, entry: ShardEntry, files: MemberFiles) -> Structure:
        """The structure of a shard of which nothing else is fetched.

        Raises: BrokenShard if it cannot be had, or is damaged.
        """
        found = files.members(entry, fmt.STRUCTURE)
        for name in fmt.STRUCTURE:
            place = entry.members[name]
            if xxhash.xxh3_64_hexdigest(found[name]) != place.xxh3:
                end = place.offset + place.size
                damage = Damage.of_member(f"{files.location}/{entry.name}", entry.key, name, place.offset, end)
                raise BrokenShard(entry.name, str(damage))
        return cls(
            first_token,
            np.frombuffer(found[fmt.DOCUMENTS], fmt.DOCUMENT_DTYPE),
            np.frombuffer(found[fmt.SENTENCES], fmt.SENTENCE_DTYPE),
            np.frombuffer(found[fmt.WORD_STARTS], np.uint8),
        )

    def starts_word(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a word starts at each position, any shape, bool."""
        bits: NDArray[np.int64] = self.word_start_bits[positions >> 3] >> (positions & 7)
        return np.bitwise_and(bits, 1).astype(np.bool_)
