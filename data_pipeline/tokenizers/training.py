"""Text -> a trained tokenizer in a folder, the same bytes every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.sources import describe_files
from data_pipeline.tokenizers.folder import TRAINED_KINDS, read_description, special_ids, write_folder
from data_pipeline.tokenizers.loading import build_tokenizer, load_tokenizer
from data_pipeline.tokenizers.protocol import Tokenizer
from data_pipeline.tokenizers.train_hugging_face import train_byte_level_bpe, train_word_piece
from data_pipeline.tokenizers.train_sentence_piece import train_sentence_piece
from data_pipeline.tokenizers.training_text import TrainingText


def train_tokenizer(
    patterns: Sequence[str],
    *,
    kind: str,
    vocab_size: int,
    out: Path,
    limit_bytes: int = 256 << 20,
    lowercase: bool = False,
    overwrite: bool = False,
) -> Tokenizer:
    """Train a tokenizer on text and write its folder; the same text and options give the same bytes.

    Args:
        patterns: source files, see ``sources.read_documents``.
        kind: one of ``TRAINED_KINDS``.
        vocab_size: ids in all: the special ids, the characters or 256 bytes, the rest learnt.
        out: folder to write; when it holds the result of the same training, that is loaded and nothing trained.
        limit_bytes: of a larger corpus, a sample of about this size, drawn by document content, is read.
        lowercase: fold case and strip accents, as "uncased" BERT does; kind ``wordpiece`` only.
        overwrite: replace a folder that holds another tokenizer.

    Raises: DataError if the kind is unknown, the vocabulary does not fit the text (naming the size that does), the
        text cannot be read, or ``out`` holds something else.
    """
    _check(kind, vocab_size, limit_bytes, lowercase)
    training: dict[str, Any] = {
        "vocab_size": vocab_size,
        "limit_bytes": limit_bytes,
        "lowercase": lowercase,
        "sources": [asdict(source) for source in describe_files(patterns)],
    }
    if out.exists() and not overwrite:
        return _reuse(out, kind, training)
    model = _train_model(kind, TrainingText(patterns, limit_bytes), vocab_size, lowercase)
    tokenizer = build_tokenizer(kind, model, special_ids(kind))
    write_folder(out, kind, model, tokenizer.identity, {"training": training}, overwrite=overwrite)
    return tokenizer


def _check(kind: str, vocab_size: int, limit_bytes: int, lowercase: bool) -> None:
    if kind not in TRAINED_KINDS:
        raise DataError(f"unknown tokenizer kind '{kind}'; use {', '.join(TRAINED_KINDS[:-1])} or {TRAINED_KINDS[-1]}")
    if vocab_size < 1 or limit_bytes < 1:
        raise DataError(f"vocab_size={vocab_size} and limit_bytes={limit_bytes} must both be at least 1")
    if lowercase and kind != "wordpiece":
        raise DataError(f"lowercase is for kind wordpiece; {kind} keeps the text as it is, so leave lowercase out")


def _train_model(kind: str, text: TrainingText, vocab_size: int, lowercase: bool) -> bytes:
    if kind == "wordpiece":
        return train_word_piece(text, vocab_size, lowercase=lowercase)
    if kind == "bytelevel-bpe":
        return train_byte_level_bpe(text, vocab_size)
    return train_sentence_piece(text, kind, vocab_size)


def _reuse(out: Path, kind: str, training: dict[str, Any]) -> Tokenizer:
    description = read_description(out)
    if description["kind"] != kind or description.get("training") != training:
        raise DataError(f"{out} holds a tokenizer made of other text or options; remove it or choose another folder")
    return load_tokenizer(out)
