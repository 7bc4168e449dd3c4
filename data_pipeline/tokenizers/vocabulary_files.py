"""``tokenizer.json`` for folders of before it: ``vocab.txt``, or ``vocab.json`` with ``merges.txt``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import DataError

if TYPE_CHECKING:
    import tokenizers

_WORD_END = "</w>"
_SPECIAL_NAMES = {
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<|endoftext|>",
}


def tokenizer_json(folder: Path, settings: dict[str, Any]) -> bytes:
    """The bytes of ``tokenizer.json`` for a folder that has vocabulary files alone.

    Args:
        folder: with ``vocab.txt`` (BERT's WordPiece), or ``vocab.json`` and ``merges.txt`` (byte-level BPE; with
            pieces that end in ``</w>``, the BPE of GPT-1).
        settings: of ``tokenizer_config.json``; ``do_lower_case``, ``tokenize_chinese_chars``, ``strip_accents`` and
            ``add_prefix_space`` are read.

    Raises: DataError if there are no such files.
    """
    if (folder / "vocab.txt").is_file():
        library = _word_piece(folder / "vocab.txt", settings)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        library = _bpe(folder / "vocab.json", folder / "merges.txt", settings)
    else:
        raise DataError(
            f"no tokenizer in {folder}: it needs tokenizer.json, vocab.txt, or vocab.json with merges.txt; "
            "check the folder or save the tokenizer with save_pretrained"
        )
    vocabulary = library.get_vocab()
    library.add_special_tokens(sorted(_SPECIAL_NAMES & vocabulary.keys(), key=lambda name: vocabulary[name]))
    return library.to_str().encode()


def _word_piece(path: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = path.read_text(encoding="utf-8").split("\n")
    vocabulary = {
        line.rstrip("\r"): token for token, line in enumerate(lines) if line.strip() or token < len(lines) - 1
    }
    library = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(cleanup=False)
    return library


def _bpe(vocab: Path, merges: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary: dict[str, int] = json.loads(vocab.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [
        (left, right)
        for left, _, right in (line.rstrip("\r").partition(" ") for line in lines)
        if right and left != "#version:"
    ]
    if any(piece.endswith(_WORD_END) for piece in vocabulary):
        library = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", end_of_word_suffix=_WORD_END))
        library.normalizer = normalizers.BertNormalizer(lowercase=True)
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.decoder = decoders.BPEDecoder(suffix=_WORD_END)
        return library
    library = Tokenizer(models.BPE(vocabulary, pairs))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    library.decoder = decoders.ByteLevel()
    return library
