"""Filters that look at one document alone: Unicode form, personal data, length."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from data_pipeline.errors import DataError
from data_pipeline.filters.scrubbing import SCRUBBERS
from data_pipeline.sources import Document


@dataclass(frozen=True)
class FilterOptions:
    """What is changed in documents and which ones are left out; by default nothing and none.

    Attributes:
        normalize: Unicode normal form to bring texts to.
        min_characters: shorter texts are left out.
        max_characters: longer texts are left out; None: no limit.
        scrub: personal data to replace by ``<email>``, ``<phone>`` and ``<ip>``.
        deduplicate: leave out texts that were there before (``exact``), or ones much like them too (``near``).
        near_threshold: share of common shingles (Jaccard) from about which two texts are much alike.

    Raises: DataError naming the option that makes no sense.
    """

    normalize: Literal["none", "NFC", "NFKC"] = "none"
    min_characters: int = 0
    max_characters: int | None = None
    scrub: tuple[Literal["email", "phone", "ip"], ...] = ()
    deduplicate: Literal["none", "exact", "near"] = "none"
    near_threshold: float = 0.8

    def __post_init__(self) -> None:
        if self.max_characters is not None and self.max_characters < max(1, self.min_characters):
            raise DataError(
                f"max_characters={self.max_characters} leaves out every text; "
                f"give at least {max(1, self.min_characters)}"
            )
        if not 0 < self.near_threshold < 1:
            raise DataError(f"near_threshold={self.near_threshold} must lie between 0 and 1, for example 0.8")
        unknown = [kind for kind in self.scrub if kind not in SCRUBBERS]
        if unknown:
            raise DataError(f"cannot scrub '{unknown[0]}'; use {', '.join(SCRUBBERS)}")


class DocumentFilter:
    """Changes documents and leaves some out; what it does depends on the document alone.

    Attributes:
        counts: documents left out by reason (``too_short``, ``too_long``), changed by kind (``normalized``,
            ``scrubbed_email``, ``scrubbed_phone``, ``scrubbed_ip``), so far.
    """

    def __init__(self, options: FilterOptions) -> None:
        self.counts: dict[str, int] = Counter()
        self._options = options
        self._scrubbers = [(f"scrubbed_{kind}", scrub) for kind, scrub in SCRUBBERS.items() if kind in options.scrub]

    def apply(self, document: Document) -> Document | None:
        """The document as it is to be learnt, None if it is left out.

        The text is normalised first, then scrubbed, and measured last.
        """
        text = self._scrubbed(self._normalized(document.text))
        if len(text) < self._options.min_characters or not text.strip():
            self.counts["too_short"] += 1
            return None
        if self._options.max_characters is not None and len(text) > self._options.max_characters:
            self.counts["too_long"] += 1
            return None
        return document if text is document.text else replace(document, text=text)

    def _normalized(self, text: str) -> str:
        form = self._options.normalize
        if form == "none" or unicodedata.is_normalized(form, text):
            return text
        self.counts["normalized"] += 1
        return unicodedata.normalize(form, text)

    def _scrubbed(self, text: str) -> str:
        for name, scrub in self._scrubbers:
            scrubbed = scrub(text)
            if scrubbed != text:
                self.counts[name] += 1
                text = scrubbed
        return text
