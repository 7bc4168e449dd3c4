"""Text <-> token ids behind one protocol; SentencePiece, trained deterministically and lossless."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.atomic import atomic_folder
from data_pipeline.errors import DataError
from data_pipeline.shards import TokenizerIdentity
from data_pipeline.sources import describe_files, find_files, read_documents
from data_pipeline.words import SPACE_MARKER, PieceTable

MODEL_FILE = "tokenizer.model"
DESCRIPTION_FILE = "ptm_tokenizer.json"

Ids = npt.NDArray[np.int64]

_FORMAT = 1
_KINDS = {"sentencepiece-bpe": "bpe", "sentencepiece-unigram": "unigram"}
_LONGEST_LINE = 4096
"""Characters of one training line; longer lines are cut, because SentencePiece silently skips long ones."""


class Tokenizer(Protocol):
    """What every kind of tokenizer can do; ids are int64, without special ids unless asked."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ids included."""
        ...

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids that no text encodes to: ``unknown``, ``pad``, ``end_of_document``."""
        ...

    @property
    def identity(self) -> TokenizerIdentity:
        """What token shards remember of the tokenizer that made them."""
        ...

    def encode(self, text: str) -> Ids:
        """Ids of a text, [tokens]."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[Ids, Ids]:
        """Ids of a text and, for each, the byte of the UTF-8 text at which it starts; both [tokens]."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids. Special ids have no text; bytes that are not UTF-8 and ids out of range become U+FFFD."""
        ...

    def word_starts(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which tokens begin a word, [tokens]; see ``data_pipeline.words``."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece model with byte fallback and no normalisation, so that ``decode(encode(text)) == text``.

    Source: SentencePiece (arXiv 1808.06226).
    """

    def __init__(self, model: bytes, special_ids: dict[str, int]) -> None:
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._special_ids = dict(special_ids)
        pieces = [self._processor.id_to_piece(token) for token in range(self.vocab_size)]
        self._pieces = PieceTable(pieces, set(special_ids.values()))
        # The marker of spaces is the one character SentencePiece cannot hold: it goes through as bytes.
        self._marker_ids = [pieces.index(f"<0x{byte:02X}>") for byte in SPACE_MARKER.encode()]

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[bytes, dict[str, int]]]:
        return SentencePieceTokenizer, (self._model, self._special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ids included."""
        return int(self._processor.get_piece_size())

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids that no text encodes to: ``unknown``, ``pad``, ``end_of_document``."""
        return dict(self._special_ids)

    @property
    def identity(self) -> TokenizerIdentity:
        """What token shards remember: the sha256 of the model file, the vocabulary size and the special ids."""
        return TokenizerIdentity(hashlib.sha256(self._model).hexdigest(), self.vocab_size, self.special_ids)

    def encode(self, text: str) -> Ids:
        """Ids of a text, [tokens], int64; a special id's name in the text is ordinary text."""
        ids: list[int] = []
        for position, part in enumerate(text.split(SPACE_MARKER)):
            ids += self._marker_ids if position else []
            ids += self._processor.encode(part)
        return np.asarray(ids, dtype=np.int64)

    def encode_with_offsets(self, text: str) -> tuple[Ids, Ids]:
        """Ids of a text and the UTF-8 byte at which each starts; both [tokens], int64."""
        ids = self.encode(text)
        return ids, np.cumsum(self._pieces.lengths[ids]) - self._pieces.lengths[ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ids have none, ids out of range and bytes that are not UTF-8 become U+FFFD."""
        size, unknown = self.vocab_size, self._special_ids["unknown"]
        return str(self._processor.decode([int(i) if 0 <= i < size else unknown for i in ids]))

    def word_starts(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which tokens begin a word, [tokens], bool."""
        return self._pieces.word_starts(ids)


def train_tokenizer(
    patterns: Sequence[str],
    *,
    kind: str,
    vocab_size: int,
    out: Path,
    limit_bytes: int = 256 << 20,
    overwrite: bool = False,
) -> Tokenizer:
    """Train a tokenizer on text and write its folder; the same text and options give the same bytes.

    Args:
        patterns: source files, see ``sources.read_documents``.
        kind: ``sentencepiece-bpe`` or ``sentencepiece-unigram``.
        vocab_size: ids in all: 3 special ids, 3 for line ends and tabs, 256 bytes, the characters, the rest learnt.
        out: folder to write; when it holds the result of the same training, that is loaded and nothing trained.
        limit_bytes: of a larger corpus, a sample of about this size, drawn by document content, is read.
        overwrite: replace a folder that holds another tokenizer.

    Raises: DataError if the kind is unknown, the vocabulary does not fit the text (naming the size that does), the
        text cannot be read, or ``out`` holds something else.
    """
    if kind not in _KINDS:
        raise DataError(f"unknown tokenizer kind '{kind}'; use {' or '.join(_KINDS)}")
    if vocab_size < 1 or limit_bytes < 1:
        raise DataError(f"vocab_size={vocab_size} and limit_bytes={limit_bytes} must both be at least 1")
    training: dict[str, Any] = {
        "vocab_size": vocab_size,
        "limit_bytes": limit_bytes,
        "sources": [asdict(source) for source in describe_files(patterns)],
    }
    if out.exists() and not overwrite:
        return _reuse(out, kind, training)
    model = _train_model(patterns, kind, vocab_size, limit_bytes)
    tokenizer = SentencePieceTokenizer(model, _special_ids())
    description = {"format": _FORMAT, "kind": kind, **asdict(tokenizer.identity), "training": training}
    with atomic_folder(out, overwrite=overwrite) as folder:
        (folder / MODEL_FILE).write_bytes(model)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the folder that ``train_tokenizer`` wrote.

    Raises: DataError if it is missing, incomplete, of another kind or damaged.
    """
    description = _read_description(folder)
    try:
        model = (folder / MODEL_FILE).read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {folder / MODEL_FILE}: {error.strerror}; train or copy the tokenizer again"
        ) from error
    if hashlib.sha256(model).hexdigest() != description["sha256"]:
        raise DataError(
            f"{folder / MODEL_FILE} is damaged: its sha256 is not the one in {DESCRIPTION_FILE}; copy it again"
        )
    return SentencePieceTokenizer(model, description["special_ids"])


def _reuse(out: Path, kind: str, training: dict[str, Any]) -> Tokenizer:
    description = _read_description(out)
    if description["kind"] != kind or description.get("training") != training:
        raise DataError(f"{out} holds a tokenizer made of other text or options; remove it or choose another folder")
    return load_tokenizer(out)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise DataError(f"no tokenizer in {folder} (no {DESCRIPTION_FILE}); make one with `ptm tokenizer train`")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); train or copy the tokenizer again") from error
    needed = {"format", "kind", "sha256", "special_ids"}
    if not isinstance(description, dict) or not needed <= description.keys():
        raise DataError(f"{path} is damaged: it needs the keys {', '.join(sorted(needed))}; train or copy it again")
    if description["format"] != _FORMAT or description["kind"] not in _KINDS:
        raise DataError(
            f"{path}: tokenizer of kind {description['kind']!r}, format {description['format']!r} is not known"
        )
    if description["special_ids"] != _special_ids():
        raise DataError(f"{path} is damaged: the special ids must be {_special_ids()}; train or copy it again")
    return description


def _special_ids() -> dict[str, int]:
    return {"unknown": 0, "pad": 1, "end_of_document": 2}


def _train_model(patterns: Sequence[str], kind: str, vocab_size: int, limit_bytes: int) -> bytes:
    import sentencepiece

    lines = _TrainingLines(patterns, limit_bytes)
    model = io.BytesIO()
    special = _special_ids()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=_KINDS[kind],
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            byte_fallback=True,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * _LONGEST_LINE,
            # A fixed number: the model depends on it, not on the machine's cores.
            num_threads=4,
            minloglevel=2,
            unk_id=special["unknown"],
            unk_surface="\ufffd",
            bos_id=-1,
            eos_id=-1,
            pad_id=special["pad"],
            control_symbols=["<|endoftext|>"],
            user_defined_symbols=["\n", "\n\n", "\t"],
        )
    except RuntimeError as error:
        raise lines.error or _training_error(error, patterns, vocab_size) from error
    return model.getvalue()


def _training_error(error: RuntimeError, patterns: Sequence[str], vocab_size: int) -> Exception:
    message = str(error)
    if "!sentences_.empty()" in message:
        return DataError(f"no text in {', '.join(patterns)}; a tokenizer needs some")
    if largest := re.search(r"too high .* a value <= (\d+)", message):
        return DataError(f"vocab_size={vocab_size} is too large for this text; use at most {largest[1]} or add text")
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return DataError(f"vocab_size={vocab_size} is too small for this text's characters; use at least {smallest[1]}")
    return error


class _TrainingLines:
    """The lines to learn from, and the reading error that SentencePiece turns into one of its own."""

    def __init__(self, patterns: Sequence[str], limit_bytes: int) -> None:
        self.error: DataError | None = None
        self._patterns = patterns
        self._keep = _kept_fraction(patterns, limit_bytes)

    def __iter__(self) -> Iterator[str]:
        try:
            for document in read_documents(self._patterns):
                if self._keep >= 1 or _content_fraction(document.text) < self._keep:
                    yield from _lines_of(document.text)
        except DataError as error:
            self.error = error
            raise


def _lines_of(text: str) -> Iterator[str]:
    # Line ends are ids of their own; the marker of spaces would be taken for a space.
    for line in re.split(f"[\n{SPACE_MARKER}]", text):
        for begin in range(0, len(line), _LONGEST_LINE):
            yield line[begin : begin + _LONGEST_LINE]


def _kept_fraction(patterns: Sequence[str], limit_bytes: int) -> float:
    compressed = [path for path in find_files(patterns) if path.suffix == ".gz"]
    if not compressed and sum(path.stat().st_size for path in find_files(patterns)) <= limit_bytes:
        return 1.0
    total = sum(len(document.text.encode()) for document in read_documents(patterns))
    return limit_bytes / max(total, 1)


def _content_fraction(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"ptm-tok-sample").digest()
    return int.from_bytes(digest, "little") / 2**64
