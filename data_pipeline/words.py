"""Where words and sentences begin, by rules that need no language model and no particular tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        """Describe the bytes of text that each id stands for, a space before a word included; None: a special id."""
        self.lengths = np.zeros(len(pieces), dtype=np.int64)
        self._opens = np.ones(len(pieces), dtype=np.bool_)
        self._closes = np.ones(len(pieces), dtype=np.bool_)
        # Bytes from a piece's start to the end of the character that later tokens complete; 0: nothing to complete.
        self._completed = np.zeros(len(pieces), dtype=np.int64)
        for token, piece in enumerate(pieces):
            if piece:
                self.lengths[token] = len(piece)
                self._opens[token], self._closes[token], self._completed[token] = _describe(piece)

    def word_starts(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which tokens begin a word, [tokens].

        Words begin at the start of the text, at a space, at and after a line end, punctuation, a CJK character or a
        special id. Of characters spread over several tokens, the ones of three and four bytes count as CJK.
        """
        starts = self._opens[ids]
        starts[1:] |= self._closes[ids[:-1]]
        begins = np.cumsum(self.lengths[ids]) - self.lengths[ids]
        spread = np.flatnonzero(self._completed[ids])
        ends = begins[spread] + self._completed[ids[spread]]
        after = np.searchsorted(begins, ends)
        after, ends = after[after < len(ids)], ends[after < len(ids)]
        starts[after[begins[after] == ends]] = True
        starts[:1] = True
        return starts


def _describe(piece: bytes) -> tuple[bool, bool, int]:
    first = next((at for at, byte in enumerate(piece) if byte & 0xC0 != 0x80), len(piece))
    last, span = _unfinished(piece)
    text = piece[first:last].decode(errors="replace")
    opens = not first and (not _continues_word(text[0]) if text else span > 2)
    word = text.lstrip(" ")
    closes = not span and bool(word) and not _continues_word(word[-1])
    return opens, closes, last + span if span > 2 else 0


def _unfinished(piece: bytes) -> tuple[int, int]:
    """Where the character begins that the piece does not finish, and its bytes; (length, 0) where there is none."""
    for at in range(max(0, len(piece) - 3), len(piece)):
        byte = piece[at]
        span = (byte >= 0xC0) + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
        if at + span > len(piece):
            return at, span
    return len(piece), 0


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
