"""Every recipe key in a table, made from the schema: ``python -m ptm_dist.recipe.reference > docs/recipes.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from ptm_dist.recipe.schema import Recipe, Section

_HEAD = """# Recipes

A recipe is a YAML file. `base:` names one file or a list of files that it lies over, relative to itself; mappings
are merged key by key and the file wins. On the command line `section.key=value` replaces a value, which is read
as YAML (`null` stands for "left out"). An unknown key or a wrong value ends in one message with file and line.

The sections `model`, `objective`, `optimizer`, `schedule` and `training`, with `data.sequence_length` and
`data.shuffle`, say what is learnt: a run directory belongs to one set of them. All other keys may change from
start to start. This page is made from the schema by `python -m ptm_dist.recipe.reference > docs/recipes.md`.
"""


def reference() -> str:
    """The page in Markdown."""
    sections = {name: field for name, field in Recipe.model_fields.items() if _section(field)}
    plain = {name: field for name, field in Recipe.model_fields.items() if name not in sections}
    return "\n".join([_HEAD, *_table("top level", plain), *_section_tables(sections)])


def _section_tables(sections: dict[str, FieldInfo]) -> Iterator[str]:
    for name, field in sections.items():
        section = _section(field)
        assert section is not None
        yield from _table(name, section.model_fields, (section.__doc__ or "").strip())


def _table(title: str, fields: dict[str, FieldInfo], meaning: str = "") -> Iterator[str]:
    yield f"## {title}\n"
    if meaning:
        yield f"{meaning}\n"
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for name, field in fields.items():
        yield f"| `{name}` | {_default(field)} | {_text(field)} |"
    yield ""


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "left out" if field.default is None else f"`{_plain(field.default)}`"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(field: FieldInfo) -> str:
    return (field.description or "").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(reference(), end="")
