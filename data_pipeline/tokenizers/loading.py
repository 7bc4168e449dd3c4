"""A tokenizer's folder -> the tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.tokenizers.folder import DESCRIPTION_FILE, model_file, read_description
from data_pipeline.tokenizers.hugging_face import HuggingFaceTokenizer
from data_pipeline.tokenizers.protocol import Tokenizer
from data_pipeline.tokenizers.sentence_piece import SentencePieceTokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the folder that ``train_tokenizer`` or ``import_tokenizer`` wrote.

    Raises: DataError if it is missing, incomplete, of another kind or damaged.
    """
    description = read_description(folder)
    path = folder / model_file(description["kind"])
    try:
        model = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; train or copy the tokenizer again") from error
    if hashlib.sha256(model).hexdigest() != description["sha256"]:
        raise DataError(f"{path} is damaged: its sha256 is not the one in {DESCRIPTION_FILE}; copy it again")
    return build_tokenizer(description["kind"], model, description["special_ids"])


def build_tokenizer(kind: str, model: bytes, special_ids: dict[str, int]) -> Tokenizer:
    """The tokenizer of a kind from the bytes of its model file and its special ids by role."""
    if kind.startswith("sentencepiece"):
        return SentencePieceTokenizer(model, special_ids)
    return HuggingFaceTokenizer(model, special_ids)
