"""Where a recipe's values were written, for messages about them."""

from __future__ import annotations

import re
from collections.abc import Mapping

_MENTION = re.compile(r"(?P<key>[a-z]\w*(?:\.[a-z]\w*|\[\d+\])+|\b[a-z]\w*(?==))(?:=(?:\[[^\]]*\]|[^\s;,:()]+))?")


class Places(dict[str, str]):
    """`file:line`, or an override's text, by key such as `data.sources[0].weight`.

    All are equal: two recipes with the same values are the same recipe, wherever these were written.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


def with_places(problem: str, places: Mapping[str, str]) -> str:
    """Say behind each key that a problem names where its value was written.

    Args:
        problem: one line, such as `a.b=3 does not divide c.d=16; use 1, 2 or 4`. Keys behind the first semicolon are
            advice, and stay as they are.
        places: by key; keys that are left out of a recipe have none.

    Returns: for example `a.b=3 (override) does not divide c.d=16 (run.yaml:7); use 1, 2 or 4`.
    """
    told: set[str] = set()

    def located(mention: re.Match[str]) -> str:
        key = mention["key"]
        if key in told or key not in places:
            return mention[0]
        told.add(key)
        place = places[key]
        return f"{mention[0]} ({'override' if place.startswith('override ') else place})"

    clash, *advice = problem.split("; ", 1)
    return "; ".join([_MENTION.sub(located, clash), *advice])
