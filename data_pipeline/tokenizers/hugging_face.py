"""Tokenizers that the library ``tokenizers`` runs: byte-level BPE, WordPiece, and whatever was imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import chain, groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.shards import TokenizerIdentity
from data_pipeline.tokenizers.protocol import Ids, byte_positions
from data_pipeline.tokenizers.sentence_piece import piece_bytes
from data_pipeline.words import PieceTable


class HuggingFaceTokenizer:
    """The model in a ``tokenizer.json``, without its templates, padding and truncation: text in, ids of text out.

    Memory: the library keeps at most 10,000 short words of BPE and unigram models, and about 160 bytes for each
    token of the text in hand.

    Attributes:
        model: bytes of ``tokenizer.json``.

    Sources: byte-level BPE, GPT-2 (Radford et al. 2019); WordPiece, BERT (arXiv 1810.04805).
    """

    def __init__(self, model: bytes, special_ids: dict[str, int]) -> None:
        import tokenizers

        self.model = model
        self._special_ids = dict(special_ids)
        self._library = tokenizers.Tokenizer.from_str(model.decode())
        self._library.no_truncation()
        self._library.no_padding()
        # Text is data: the name of a special token in it is not that token.
        self._library.encode_special_tokens = True
        settings = json.loads(model)
        added = {entry["id"]: entry for entry in settings.get("added_tokens", [])}
        self._size = 1 + max(self._library.get_vocab(with_added_tokens=True).values())
        special = set(special_ids.values()) | {token for token, entry in added.items() if entry["special"]}
        self._pieces = PieceTable(_texts(self._library, settings, added, special, self._size))
        self._byte_level = _is_byte_level(settings)
        self._unknown = special_ids.get("unknown", -1)
        self._special = special - {self._unknown}
        self._splits_sentences = _splits_sentences(settings)
        # An imported unigram or word-level model may hold the names of special tokens as pieces: they have no text.
        self._is_ordinary = np.ones(self._size, dtype=np.bool_)
        self._is_ordinary[sorted(self._special)] = False

    def __reduce__(self) -> tuple[type[HuggingFaceTokenizer], tuple[bytes, dict[str, int]]]:
        return HuggingFaceTokenizer, (self.model, self._special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ids included; one more than the largest id."""
        return self._size

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids by role; no text encodes to them, except words that cannot be spelled to ``unknown``."""
        return dict(self._special_ids)

    @property
    def identity(self) -> TokenizerIdentity:
        """What token shards remember: the sha256 of ``tokenizer.json``, the vocabulary size and the special ids."""
        return TokenizerIdentity(hashlib.sha256(self.model).hexdigest(), self._size, self.special_ids)

    def encode(self, text: str) -> Ids:
        """Ids of a text, [tokens], int64; a special token's name in the text is ordinary text."""
        # The fast batch call leaves out offsets, which take half of the time.
        (encoding,) = self._library.encode_batch_fast([text], add_special_tokens=False)
        ids = np.asarray(encoding.ids, dtype=np.int64)
        return ids[self._ordinary(ids)]

    def encode_with_offsets(self, text: str) -> tuple[Ids, Ids]:
        """Ids of a text and the UTF-8 byte at which each starts; both [tokens], int64, starts never fall.

        Tokens that share a character share its byte, unless the model is byte-level: then each has its own.
        """
        encoding = self._library.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, dtype=np.int64)
        ordinary = self._ordinary(ids)
        characters = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 0][ordinary]
        ids = ids[ordinary]
        lengths = self._pieces.lengths[ids]
        width = _character_starts(text)
        if self._byte_level and lengths.sum() == width[-1]:
            return ids, np.cumsum(lengths) - lengths
        return ids, np.maximum.accumulate(width[characters])

    def encode_sentences(self, texts: Sequence[str], sentences: Sequence[Sequence[int]]) -> list[tuple[Ids, Ids]]:
        """Ids of texts, and for each sentence the number of tokens before it; see ``Tokenizer``.

        The library takes as long again to find offsets, so they are asked for only where nothing else tells.
        """
        result = None
        if self._splits_sentences:
            result = self._encode_parts(texts, sentences)
        elif self._byte_level:
            result = self._encode_lossless(texts, sentences)
        return result or [
            (ids, np.searchsorted(begins, byte_positions(text, starts)))
            for text, starts, (ids, begins) in zip(texts, sentences, map(self.encode_with_offsets, texts), strict=True)
        ]

    def _encode_parts(self, texts: Sequence[str], sentences: Sequence[Sequence[int]]) -> list[tuple[Ids, Ids]] | None:
        """Sentence by sentence, for models that have a word end where a sentence begins anyway."""
        spans = ((text, pairwise([*starts, len(text)])) for text, starts in zip(texts, sentences, strict=True))
        parts = [text[begin:end] for text, bounds in spans for begin, end in bounds]
        encoded = [encoding.ids for encoding in self._library.encode_batch_fast(parts, add_special_tokens=False)]
        ids = np.fromiter(chain.from_iterable(encoded), dtype=np.int64)
        if not self._ordinary(ids).all():
            return None
        before = np.concatenate([[0], np.cumsum([len(part) for part in encoded], dtype=np.int64)])
        bounds = np.concatenate([[0], np.cumsum([len(starts) for starts in sentences], dtype=np.int64)])
        return [
            (ids[before[first] : before[last]], before[first:last] - before[first]) for first, last in pairwise(bounds)
        ]

    def _encode_lossless(
        self, texts: Sequence[str], sentences: Sequence[Sequence[int]]
    ) -> list[tuple[Ids, Ids]] | None:
        """With the lengths of the pieces for offsets, where they add up to the text."""
        result = []
        encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        for text, starts, encoding in zip(texts, sentences, encoded, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            ids = ids[self._ordinary(ids)]
            lengths = self._pieces.lengths[ids]
            if lengths.sum() != len(text.encode()):
                return None
            result.append((ids, np.searchsorted(np.cumsum(lengths) - lengths, byte_positions(text, starts))))
        return result

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ids have none, ids out of range and bytes that are not UTF-8 become U+FFFD."""
        text = []
        for known, run in groupby(map(int, ids), key=lambda token: 0 <= token < self._size and token != self._unknown):
            tokens = [token for token in run if token not in self._special]
            text.append(self._library.decode(tokens, skip_special_tokens=False) if known else "\ufffd" * len(tokens))
        return "".join(text)

    def word_starts(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which tokens begin a word, [tokens], bool."""
        return self._pieces.word_starts(ids)

    def _ordinary(self, ids: Ids) -> npt.NDArray[np.bool_]:
        return self._is_ordinary[ids]


def _texts(
    library: Any, settings: dict[str, Any], added: dict[int, Any], special: set[int], size: int
) -> list[bytes | None]:
    """What each id stands for, in UTF-8, a space before a word included; None for special ids and unused ones."""
    spelling = _spelling(settings)

    def text(token: int) -> bytes | None:
        if token in special:
            return None
        if token in added:
            return str(added[token]["content"]).encode()
        piece = library.id_to_token(token)
        return None if piece is None else spelling(piece)

    return [text(token) for token in range(size)]


def _spelling(settings: dict[str, Any]) -> Callable[[str], bytes]:
    model = settings["model"]
    if model.get("type") == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return lambda piece: (piece.removeprefix(prefix) if piece.startswith(prefix) else f" {piece}").encode()
    if _is_byte_level(settings):
        codes = _byte_level_codes()
        return lambda piece: bytes(codes[character] for character in piece if character in codes)
    if suffix := model.get("end_of_word_suffix"):
        return lambda piece: (f"{piece.removesuffix(suffix)} " if piece.endswith(suffix) else piece).encode()
    return piece_bytes


def _is_byte_level(settings: dict[str, Any]) -> bool:
    step = settings.get("pre_tokenizer") or {}
    return any(part["type"] == "ByteLevel" for part in step.get("pretokenizers", [step] if step else []))


def _splits_sentences(settings: dict[str, Any]) -> bool:
    """Whether words end at all white space and punctuation, as BERT's do, and so wherever a sentence begins."""
    steps = settings.get("normalizer"), settings.get("pre_tokenizer")
    kinds = [step["type"] if step else None for step in steps]
    plain = all(entry["special"] for entry in settings.get("added_tokens", []))
    return plain and settings["model"].get("type") == "WordPiece" and kinds == ["BertNormalizer", "BertPreTokenizer"]


def _byte_level_codes() -> dict[str, int]:
    """The character that stands for each byte: itself where it can be printed, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _character_starts(text: str) -> Ids:
    """The UTF-8 byte at which each character starts, and the number of bytes, [characters + 1]."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])
