"""Where words and sentences begin, by rules that need no language model and no particular tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_LATIN_END = ".!?\u2026\u061f\u06d4\u0964"
_CJK_END = "\u3002\uff01\uff1f\uff61"
_CJK_CLOSING = "\u300d\u300f\u201d\u2019\uff09\u3011\u300b\u3009\u3015\uff3d\uff5d\u3017\u301e\u301f)\\]"
_CLOSING = f"\"'\u203a\u00bb}}{_CJK_CLOSING}"
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# The marks come first, and what they are is asked afterwards: so the search goes from mark to mark.
_SENTENCE_END = re.compile(
    rf"[\n{_LATIN_END}{_CJK_END}](?:"
    # A blank line ends a heading or a paragraph, whatever stands before it ...
    r"(?P<paragraph>(?<=\n)[^\S\n]*\n\s*)"
    # ... a Latin end mark needs white space and no small letter after it (e.g. this), ...
    rf"|(?<=[{_LATIN_END}])[{_LATIN_END}]*[{_CLOSING}]*(?P<latin>\s+)(?=[^\sa-z])"
    # ... a CJK one stands alone, ...
    rf"|(?<=[{_CJK_END}])[{_CJK_END}!?\u2026]*[{_CJK_CLOSING}]*(?P<cjk>\s*)"
    # ... and between CJK characters a narrow one does too.
    rf"|(?<=[{_CJK}][!?])[!?]*[{_CJK_CLOSING}]*(?P<narrow>)(?=[{_CJK}\u201c\u300c\u300e])"
    r")"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words("""
    Mr Mrs Ms Mx Dr Prof Messrs Mme Mlle Mmes Sra Dra Rev Hon Gov Sen Rep Pres Gen Col Maj Capt Cpt Cmdr Lt Sgt Cpl Adm
    vs viz cf e.g i.e eg ie E.g I.e""")
"""Before a full stop, these never end a sentence."""
_BEFORE_NUMBERS = _words("""
    No Nos Nr Fig Figs Eq Eqs Sec Sect Ch Chap Vol Vols Art Tab Ref Refs p pp c ca approx no nos fig figs eq sec ch vol
    art Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec""")
"""These go on when a number follows."""
_NAMES = _words("St Mt Ft Jr Sr Inc Ltd Co Corp Bros Dept Univ al")
"""These, initials and letters with stops (U.S.) go on unless a word follows that often begins a sentence."""
_OPENERS = _words("""
    A After All Also Although An And Another Any As At Because Before Both But By During Each Even Every Finally First
    For From Further He Her Here His How However I If In Instead It Its Later Like Many May Meanwhile Most My No Not
    Now Of On Once One Only Or Other Our Perhaps She Since So Some Such Than That The Their Then There These They This
    Those Though Through Thus To Today Two Under Until We Were What When Where Whether Which While Who Why With Yet You
    Your""")
_LETTERS = re.compile(r"[^\W\d_]{1,2}(?:\.[^\W\d_]{1,2})+")
_OPENER = re.compile(r"[\"'\u201c\u2018(]?([A-Z][a-z]*+)(?!\.)")
_LONGEST = 16


def sentence_starts(text: str) -> list[int]:
    """Characters at which sentences begin, ascending, the first always 0.

    A sentence ends with ``. ! ?`` before white space and no small letter, with a CJK full stop, or with a blank
    line. Spaces before a sentence belong to it, as they belong to its first token; line ends belong to the sentence
    before. A full stop after a title, an initial, letters such as "U.S.", a common short form before what belongs to
    it ("Fig. 3") or the number of a list item ends none. No rule knows all languages: some abbreviations are taken
    for ends, and few ends for abbreviations.
    """
    starts = [0]
    for match in _SENTENCE_END.finditer(text):
        gap = match[match.lastgroup or 0]
        if match.lastgroup == "latin" and gap.count("\n") < 2 and _goes_on(text, match):
            continue
        start = match.end() - (len(gap) - gap.rfind("\n") - 1)
        if starts[-1] < start < len(text):
            starts.append(start)
    return starts


def _goes_on(text: str, match: re.Match[str]) -> bool:
    stop, after = match.start(), match.end()
    if text[after].islower():
        return True
    if text[stop] != "." or match.start("latin") != stop + 1:
        return False
    before = text[max(0, stop - _LONGEST) : stop]
    word = before.split()[-1].lstrip("(['\"\u2018\u201c") if before and not before[-1].isspace() else ""
    if word in _TITLES:
        return True
    if word in _BEFORE_NUMBERS:
        return text[after].isdigit()
    initial = len(word) == 1 and word.isupper() and word != "I"
    if initial or word in _NAMES or _LETTERS.fullmatch(word):
        opener = _OPENER.match(text, after)
        return not (opener and opener[1] in _OPENERS)
    return len(word) <= 2 and word.isdecimal() and _begins_line(before[: -len(word)], whole=stop <= _LONGEST)


def _begins_line(before: str, *, whole: bool) -> bool:
    _, line_end, margin = before.rpartition("\n")
    return not margin.strip() and (whole or bool(line_end))


_OPENS, _CLOSES, _UNFINISHED = 1, 2, 4
"""What a piece says about words: it begins one, the next one begins one, its last character goes on in the next."""


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
        # One small table to look each token up in; it stays in the cache of a core.
        self._flags = self._opens.astype(np.uint8) | self._closes.astype(np.uint8) << 1
        self._flags[self._completed > 0] |= _UNFINISHED

    def word_starts(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which tokens begin a word, [tokens].

        Words begin at the start of the text, at a space, at and after a line end, punctuation, a CJK character or a
        special id. Of characters spread over several tokens, the ones of three and four bytes count as CJK.
        """
        flags = self._flags[ids]
        starts: npt.NDArray[np.uint8] = np.bitwise_and(flags, _OPENS, dtype=np.uint8)
        starts[1:] |= (flags[:-1] & _CLOSES) >> 1
        starts[:1] = 1
        unfinished = np.flatnonzero(flags & _UNFINISHED)
        missing = self._completed[ids[unfinished]] - self.lengths[ids[unfinished]]
        self._mark_ends(ids, unfinished + 1, missing, starts)
        return starts.view(np.bool_)

    def _mark_ends(
        self,
        ids: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
        missing: npt.NDArray[np.int64],
        starts: npt.NDArray[np.uint8],
    ) -> None:
        """Mark the tokens behind characters that miss some bytes from `places` on; a special id ends a character."""
        while places.size:
            inside = places < len(ids)
            places, missing = places[inside], missing[inside]
            starts[places[missing == 0]] = 1
            lengths = self.lengths[ids[places]]
            goes_on = (lengths > 0) & (lengths <= missing)
            places, missing = places[goes_on] + 1, (missing - lengths)[goes_on]


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
