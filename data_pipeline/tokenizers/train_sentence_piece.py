"""SentencePiece training with options that make models lossless, deterministic and exportable."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from data_pipeline.tokenizers.folder import SPECIAL_NAMES, special_ids
from data_pipeline.tokenizers.sentence_piece import SCORE_STEP, SPACE_MARKER, USER_DEFINED, model_proto
from data_pipeline.tokenizers.training_text import TrainingText, too_large, too_small

_LONGEST_LINE = 4096
"""Characters of one training line; longer lines are cut, because SentencePiece silently skips long ones."""


def train_sentence_piece(text: TrainingText, kind: str, vocab_size: int) -> bytes:
    """Train a model of ``vocab_size`` ids.

    Args:
        text: what to learn from.
        kind: ``sentencepiece-bpe`` or ``sentencepiece-unigram``.
        vocab_size: 6 special ids, 3 line ends and tabs, 256 bytes, the characters, the rest learnt.

    Returns: the bytes of the model file.
    Raises: DataError if the text cannot be read or is empty, or the size does not fit it.
    """
    import sentencepiece

    model = io.BytesIO()
    ids, names = special_ids(kind), SPECIAL_NAMES[kind]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(text),
            model_writer=model,
            model_type=kind.removeprefix("sentencepiece-"),
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
            unk_id=ids["unknown"],
            unk_surface="\ufffd",
            bos_id=-1,
            eos_id=-1,
            pad_id=ids["pad"],
            control_symbols=[names[role] for role in ("end_of_document", "classify", "separator", "mask")],
            user_defined_symbols=list(USER_DEFINED),
            required_chars=_name_characters(kind),
        )
    except RuntimeError as error:
        raise text.error or _training_error(error, text, vocab_size) from error
    return _with_exact_scores(model.getvalue()) if kind == "sentencepiece-unigram" else model.getvalue()


def _lines(text: TrainingText) -> Iterator[str]:
    for document in text:
        # Line ends are ids of their own; the marker of spaces would be taken for a space.
        for line in re.split(f"[\n{SPACE_MARKER}]", document):
            for begin in range(0, len(line), _LONGEST_LINE):
                yield line[begin : begin + _LONGEST_LINE]


def _name_characters(kind: str) -> str:
    # With these characters in the vocabulary, an exported model can always spell the name of a special or byte piece.
    names = "".join(SPECIAL_NAMES[kind].values()) + "<0x0123456789ABCDEF>"
    return "".join(sorted(set(names)))


def _with_exact_scores(model: bytes) -> bytes:
    proto = model_proto(model)
    for piece in proto.pieces:
        piece.score = round(piece.score / SCORE_STEP) * SCORE_STEP
    return bytes(proto.SerializeToString(deterministic=True))


def _training_error(error: RuntimeError, text: TrainingText, vocab_size: int) -> Exception:
    message = str(error)
    if "!sentences_.empty()" in message:
        return text.nothing()
    if largest := re.search(r"too high .* a value <= (\d+)", message):
        return too_large(vocab_size, largest[1])
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return too_small(vocab_size, smallest[1])
    return error
