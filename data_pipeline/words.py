"""Where words and sentences begin, by rules that need no language model and no particular tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SPACE_MARKER = "\u2581"
"""SentencePiece's stand-in for a space inside a piece."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_CLOSING = "\"'\u2019\u201d\u00bb)\\]}"
_SENTENCE_END = re.compile(
    # A blank line ends a heading or a paragraph, whatever stands before it ...
    r"(?P<paragraph>\n[^\S\n]*\n\s*)"
    # ... a Latin end mark needs white space and no small letter after it (e.g. this), ...
    rf"|[.!?\u2026]+[{_CLOSING}]*(?P<latin>\s+)(?=[^\sa-z])"
    # ... a CJK one stands alone.
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\u2019\uff09\u3011]*(?P<cjk>\s*)"
)


def sentence_starts(text: str) -> list[int]:
    """Characters at which sentences begin, ascending, the first always 0.

    A sentence ends with ``. ! ?`` before white space and no small letter, with a CJK full stop, or with a blank
    line. Spaces before a sentence belong to it, as they belong to its first token; line ends belong to the sentence
    before. Abbreviations before a capital ("Mr. Smith") are taken for ends: a rule without a language has to err.
    """
    starts = [0]
    for match in _SENTENCE_END.finditer(text):
        gap = match[match.lastgroup or 0]
        start = match.end() - (len(gap) - gap.rfind("\n") - 1)
        if starts[-1] < start < len(text):
            starts.append(start)
    return starts


class PieceTable:
    """What follows from a piece alone, for all ids of a vocabulary: its length and how it bounds words.

    Attributes:
        lengths: bytes of text (UTF-8) that an id stands for, [vocab], int64; 0 for special ids.
    """

    def __init__(self, pieces: Sequence[str], special_ids: set[int]) -> None:
        self.lengths = np.zeros(len(pieces), dtype=np.int64)
        self._opens = np.ones(len(pieces), dtype=np.bool_)
        self._closes = np.ones(len(pieces), dtype=np.bool_)
        # First bytes of characters of three and of four bytes: a word begins that many tokens later.
        self._leads = {span: np.array([_leads(piece, span) for piece in pieces]) for span in (3, 4)}
        for token, piece in enumerate(pieces):
            if token not in special_ids:
                self.lengths[token], self._opens[token], self._closes[token] = _describe(piece)

    def word_starts(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which tokens begin a word, [tokens].

        Words begin at the start of the text, at a space, at and after a line end, punctuation, a CJK character or a
        special id. Of characters spelled in bytes, the ones of three and four bytes count as CJK.
        """
        starts = self._opens[ids]
        starts[1:] |= self._closes[ids[:-1]]
        for span, leads in self._leads.items():
            starts[span:] |= leads[ids[:-span]]
        starts[:1] = True
        return starts


def _leads(piece: str, span: int) -> bool:
    byte = _BYTE_PIECE.fullmatch(piece)
    first, last = {3: (0xE0, 0xEF), 4: (0xF0, 0xF7)}[span]
    return byte is not None and first <= int(byte[1], 16) <= last


def _describe(piece: str) -> tuple[int, bool, bool]:
    if byte := _BYTE_PIECE.fullmatch(piece):
        value = int(byte[1], 16)
        stands_alone = value < 0x80 and not chr(value).isalnum()
        return 1, value >= 0xE0 or stands_alone, stands_alone
    text = piece.replace(SPACE_MARKER, " ")
    word = text.lstrip(" ")
    opens = text.startswith(" ") or not _continues_word(text[0])
    return len(text.encode()), opens, bool(word) and not _continues_word(word[-1])


def _continues_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" and not _is_cjk(character)


def _is_cjk(character: str) -> bool:
    code = ord(character)
    return (
        0x3040 <= code <= 0x30FF
        or 0x3400 <= code <= 0x4DBF
        or 0x4E00 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x323AF
    )
