"""Byte-level BPE and WordPiece training by the library ``tokenizers``, made deterministic."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from data_pipeline.tokenizers.folder import SPECIAL_NAMES
from data_pipeline.tokenizers.training_text import TrainingText, too_large, too_small

if TYPE_CHECKING:
    import tokenizers

_PREFIX = "##"
_RAREST_PAIR = 2
"""A pair seen less often is not merged: it would be a memory of one place in the text."""

_COVERAGE = 0.9995
"""Share of the characters that a WordPiece alphabet covers; words with rarer ones are unknown."""


def train_byte_level_bpe(text: TrainingText, vocab_size: int) -> bytes:
    """Train the tokenizer of GPT-2 and RoBERTa.

    Args:
        text: what to learn from.
        vocab_size: 5 special ids, 256 bytes, the rest learnt.

    Returns: the bytes of ``tokenizer.json``.
    Raises: DataError if the text cannot be read or is empty, or the size does not fit it.
    Source: GPT-2 (Radford et al. 2019), RoBERTa (arXiv 1907.11692) section 4.4.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    names = _names("bytelevel-bpe")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(names) + len(alphabet):
        raise too_small(vocab_size, len(names) + len(alphabet))
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_RAREST_PAIR,
        show_progress=False,
        special_tokens=names,
        initial_alphabet=alphabet,
    )
    _train(library, trainer, text)
    return _finished(library, names, vocab_size)


def train_word_piece(text: TrainingText, vocab_size: int, *, lowercase: bool) -> bytes:
    """Train the tokenizer of BERT.

    Args:
        text: what to learn from.
        vocab_size: 5 special ids, each character alone and, where words go on with it, as ``##`` piece, the rest
            learnt.
        lowercase: fold case and strip accents.

    Returns: the bytes of ``tokenizer.json``.
    Raises: DataError if the text cannot be read or is empty, or the size does not fit it.
    Source: BERT (arXiv 1810.04805) section 3; learnt by pair frequency, as every public trainer does.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    names = _names("wordpiece")
    library = Tokenizer(models.WordPiece(unk_token=SPECIAL_NAMES["wordpiece"]["unknown"]))
    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix=_PREFIX, cleanup=False)
    alphabet = _alphabet(library, text)
    # The library would number the ## characters in the order of a hash table: another one in each process.
    inner = [f"{_PREFIX}{character}" for character in alphabet if _goes_on(library, character)]
    if vocab_size < len(names) + len(alphabet) + len(inner):
        raise too_small(vocab_size, len(names) + len(alphabet) + len(inner))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=_RAREST_PAIR,
        show_progress=False,
        special_tokens=[*names, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_PREFIX,
    )
    _train(library, trainer, text)
    return _finished(library, names, vocab_size)


def _names(kind: str) -> list[str]:
    return list(dict.fromkeys(SPECIAL_NAMES[kind].values()))


def _train(library: tokenizers.Tokenizer, trainer: Any, text: TrainingText) -> None:
    try:
        library.train_from_iterator(text, trainer)
    except Exception as error:
        raise text.error or error from error
    if text.empty:
        raise text.nothing()


def _finished(library: tokenizers.Tokenizer, names: list[str], vocab_size: int) -> bytes:
    """The bytes of ``tokenizer.json``, in which only the names of the roles are special."""
    from tokenizers import AddedToken, Tokenizer

    reached = library.get_vocab_size()
    if reached < vocab_size:
        raise too_large(vocab_size, reached)
    finished = Tokenizer(library.model)
    finished.normalizer, finished.pre_tokenizer, finished.decoder = (
        library.normalizer,
        library.pre_tokenizer,
        library.decoder,
    )
    # A mask stands for a word and the space before it.
    finished.add_special_tokens([AddedToken(name, normalized=False, lstrip="mask" in name.lower()) for name in names])
    return finished.to_str(pretty=False).encode()


def _alphabet(library: tokenizers.Tokenizer, text: TrainingText) -> list[str]:
    """The most frequent characters that together cover ``_COVERAGE`` of the text, by code point."""
    counts: Counter[str] = Counter()
    for document in text:
        counts.update("".join(library.normalizer.normalize_str(document).split()))
    if not counts:
        raise text.nothing()
    wanted, alphabet = _COVERAGE * counts.total(), []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if wanted <= 0:
            break
        alphabet.append(character)
        wanted -= count
    return sorted(alphabet)


def _goes_on(library: tokenizers.Tokenizer, character: str) -> bool:
    """Whether a word can go on with the character: not with punctuation or CJK, which stand alone."""
    text = library.normalizer.normalize_str(f"a{character}")
    return len(library.pre_tokenizer.pre_tokenize_str(text)) == 1
