"""What every kind of tokenizer can do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.shards import TokenizerIdentity

Ids = npt.NDArray[np.int64]


def byte_positions(text: str, characters: Sequence[int]) -> Ids:
    """The bytes of the UTF-8 text at which characters begin; these ascend, [characters]."""
    if text.isascii():
        return np.array(characters, dtype=np.int64)
    widths = [len(text[begin:end].encode()) for begin, end in pairwise([0, *characters])]
    return np.cumsum(widths, dtype=np.int64)


class Tokenizer(Protocol):
    """What every kind of tokenizer can do; ids are int64, without special ids unless asked."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ids included."""
        ...

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids by role: ``unknown``, ``pad``, ``end_of_document``, ``classify``, ``separator``, ``mask``.

        No text encodes to them, except to ``unknown``, where a tokenizer cannot spell every text. Two roles may
        share an id; an imported tokenizer may lack roles.
        """
        ...

    @property
    def identity(self) -> TokenizerIdentity:
        """What token shards remember of the tokenizer that made them."""
        ...

    def encode(self, text: str) -> Ids:
        """Ids of a text, [tokens]; the name of a special id in the text is ordinary text."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[Ids, Ids]:
        """Ids of a text and, for each, the byte of the UTF-8 text at which it starts; both [tokens]."""
        ...

    def encode_sentences(self, texts: Sequence[str], sentences: Sequence[Sequence[int]]) -> list[tuple[Ids, Ids]]:
        """Ids of texts, [tokens], and for each sentence the number of tokens that begin before it, [sentences].

        Args:
            texts: encoded together, which is faster.
            sentences: characters of each text at which its sentences begin, see ``words.sentence_starts``.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids. Special ids have no text; bytes that are not UTF-8 and ids out of range become U+FFFD."""
        ...

    def word_starts(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which tokens begin a word, [tokens]; see ``data_pipeline.words``."""
        ...
