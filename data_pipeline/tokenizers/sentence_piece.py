"""SentencePiece models, lossless, and encoded so that another implementation finds the same ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.shards import TokenizerIdentity
from data_pipeline.tokenizers.protocol import Ids, byte_positions
from data_pipeline.words import PieceTable

SPACE_MARKER = "\u2581"
"""SentencePiece's stand-in for a space inside a piece."""

USER_DEFINED = ("\n", "\n\n", "\t")
"""Texts that are always ids of their own."""

CHUNK = r"\n\n|\n|\t|[^\n\t]{1,1000}(?<! )(?![^ \n\t])|[^\n\t]{1,1000}"
"""What is encoded by itself: a line, or up to 1,000 characters of it, cut before a space where there is one.

No piece holds a line end or a letter before a space, so such a cut changes no id. It bounds the sums of a unigram
model's scores: they stay exact in single precision (see ``SCORE_STEP``), and so every implementation of the search
finds the same pieces. Without it, a long document's ids depend on the rounding of sums.
"""

SCORE_STEP = 2.0**-8
"""Scores of unigram pieces are multiples of this: 1,000 of them, each below 64, add up to less than 2**24 steps."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_CHUNKS = re.compile(CHUNK)
_MARKED = re.compile(f"({SPACE_MARKER})")


class SentencePieceTokenizer:
    """A SentencePiece model with byte fallback and no normalisation, so that ``decode(encode(text)) == text``.

    Attributes:
        model: bytes of the model file.

    Source: SentencePiece (arXiv 1808.06226).
    """

    def __init__(self, model: bytes, special_ids: dict[str, int]) -> None:
        import sentencepiece

        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._special_ids = dict(special_ids)
        pieces = [self._processor.id_to_piece(token) for token in range(self.vocab_size)]
        special = set(special_ids.values())
        self._pieces = PieceTable([None if i in special else piece_bytes(piece) for i, piece in enumerate(pieces)])
        # The marker of spaces is the one character SentencePiece cannot hold: it goes through as bytes.
        self._marker_ids = [pieces.index(f"<0x{byte:02X}>") for byte in SPACE_MARKER.encode()]

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[bytes, dict[str, int]]]:
        return SentencePieceTokenizer, (self.model, self._special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ids included."""
        return int(self._processor.get_piece_size())

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids that no text encodes to, by role."""
        return dict(self._special_ids)

    @property
    def identity(self) -> TokenizerIdentity:
        """What token shards remember: the sha256 of the model file, the vocabulary size and the special ids."""
        return TokenizerIdentity(hashlib.sha256(self.model).hexdigest(), self.vocab_size, self.special_ids)

    def encode(self, text: str) -> Ids:
        """Ids of a text, [tokens], int64; a special id's name in the text is ordinary text."""
        parts: list[str] = _CHUNKS.findall(text)
        if SPACE_MARKER in text:
            parts = [part for chunk in parts for part in _MARKED.split(chunk) if part]
        # One by one: for a list the library starts a thread, which costs more than it saves.
        found: list[list[int]] = [self._processor.encode(part) for part in parts]
        ids = (self._marker_ids if part == SPACE_MARKER else ids for part, ids in zip(parts, found, strict=True))
        return np.fromiter(chain.from_iterable(ids), dtype=np.int64)

    def encode_with_offsets(self, text: str) -> tuple[Ids, Ids]:
        """Ids of a text and the UTF-8 byte at which each starts; both [tokens], int64."""
        ids = self.encode(text)
        return ids, np.cumsum(self._pieces.lengths[ids]) - self._pieces.lengths[ids]

    def encode_sentences(self, texts: Sequence[str], sentences: Sequence[Sequence[int]]) -> list[tuple[Ids, Ids]]:
        """Ids of texts, and for each sentence the number of tokens before it; see ``Tokenizer``."""
        encoded = map(self.encode_with_offsets, texts)
        return [
            (ids, np.searchsorted(begins, byte_positions(text, starts)))
            for text, starts, (ids, begins) in zip(texts, sentences, encoded, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ids have none, ids out of range and bytes that are not UTF-8 become U+FFFD."""
        size, unknown = self.vocab_size, self._special_ids["unknown"]
        return str(self._processor.decode([int(i) if 0 <= i < size else unknown for i in ids]))

    def word_starts(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which tokens begin a word, [tokens], bool."""
        return self._pieces.word_starts(ids)


def model_proto(model: bytes) -> Any:
    """The bytes of a model file as the protocol buffer they are: pieces with scores and types, and training options."""
    from sentencepiece import sentencepiece_model_pb2

    # Generated code, which builds its classes when it is imported.
    return sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]


def piece_bytes(piece: str) -> bytes:
    """The text, in UTF-8, that a piece spelled as SentencePiece spells it stands for."""
    if byte := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace(SPACE_MARKER, " ").encode()
