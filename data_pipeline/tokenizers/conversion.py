"""SentencePiece models as models of the library ``tokenizers``, id for id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_pipeline.tokenizers.hugging_face import HuggingFaceTokenizer
from data_pipeline.tokenizers.protocol import Tokenizer
from data_pipeline.tokenizers.sentence_piece import CHUNK, SPACE_MARKER, SentencePieceTokenizer, model_proto

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import models

_NORMAL, _USER_DEFINED = 1, 4
"""Types of pieces that text is cut into; the others are special ids and bytes (``sentencepiece_model.proto``)."""

_UNIGRAM = 1
"""Type of model, see there."""

_NEVER = -1e6
"""Score of names that no text may be cut into; real ones are above -64."""


def library_model(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer as one of the library ``tokenizers``: the same ids, special names recognised, no template.

    Spaces stand for themselves in the pieces, not the marker of SentencePiece, so that no normaliser is needed and a
    marker in the text is an unknown character that goes through as bytes.

    Args:
        tokenizer: one that ``load_tokenizer`` returned.
    """
    from tokenizers import Tokenizer

    if isinstance(tokenizer, SentencePieceTokenizer):
        return _converted(tokenizer)
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise TypeError(f"{type(tokenizer).__name__} has no conversion")
    library = Tokenizer.from_str(tokenizer.model.decode())
    library.no_truncation()
    library.no_padding()
    return library


def _converted(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers

    proto = model_proto(tokenizer.model)
    library = Tokenizer(_unigram(proto) if proto.trainer_spec.model_type == _UNIGRAM else _bpe(proto))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(CHUNK), behavior="isolated")
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    for role, token in sorted(tokenizer.special_ids.items(), key=lambda item: item[1]):
        # A mask stands for a word and the space before it.
        name = AddedToken(proto.pieces[token].piece, normalized=False, lstrip=role == "mask")
        library.add_special_tokens([name])
    return library


def _unigram(proto: Any) -> models.Unigram:
    from tokenizers import models

    def score(piece: Any) -> float:
        # Line ends and tabs are chunks of their own; below 0, so that two line ends in one piece beat two pieces.
        return float(piece.score) if piece.type == _NORMAL else -1.0 if piece.type == _USER_DEFINED else _NEVER

    pieces = [(_plain(piece), score(piece)) for piece in proto.pieces]
    return models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=True)


def _bpe(proto: Any) -> models.BPE:
    from tokenizers import models

    ordinary = {_plain(piece): piece.score for piece in proto.pieces if piece.type in (_NORMAL, _USER_DEFINED)}
    # SentencePiece merges any two neighbours that form a piece, so each way to form it is a merge. Where they stand
    # within a piece changes no id: 60,000 random texts in 1,500 random vocabularies came out the same in any order.
    learnt = sorted((text for text in ordinary if len(text) > 1), key=lambda text: -ordinary[text])
    merges = [
        (text[:cut], text[cut:])
        for text in learnt
        for cut in range(1, len(text))
        if text[:cut] in ordinary and text[cut:] in ordinary
    ]
    vocabulary = {_plain(piece): token for token, piece in enumerate(proto.pieces)}
    unknown = proto.pieces[proto.trainer_spec.unk_id].piece
    return models.BPE(vocabulary, merges, unk_token=unknown, byte_fallback=True)


def _plain(piece: Any) -> str:
    return str(piece.piece).replace(SPACE_MARKER, " ")
