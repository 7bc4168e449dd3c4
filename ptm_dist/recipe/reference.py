"""Every recipe key in a table, made from the schema: ``python -m ptm_dist.recipe.reference > docs/recipes.md``."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeGuard, cast, get_args, get_origin

from pydantic.fields import FieldInfo

from ptm_dist.recipe.schema import Recipe, Section

_HEAD = """# Recipes

A recipe is a YAML file. `base:` names one file or a list of files that it lies over, relative to itself; mappings
are merged key by key and the file wins. On the command line `section.key=value` replaces a value, which is read
as YAML (`null` stands for "left out"). An unknown key or a wrong value ends in one message with file and line.

The sections `model`, `objective`, `optimizer`, `schedule` and `training`, with the keys of `data` that say what is
read (lengths, order, names and weights of sources), say what is learnt: a run directory belongs to one set of them.
All other keys may change from start to start. [models.md](models.md) lists the recipes of
published models. This page is made from the schema by `python -m ptm_dist.recipe.reference > docs/recipes.md`.
"""

_TYPES = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text", Path: "path"}


def reference() -> str:
    """The page in Markdown."""
    sections = {name: field for name, field in Recipe.model_fields.items() if _section(field.annotation)}
    plain = {name: field for name, field in Recipe.model_fields.items() if name not in sections}
    return "\n".join([_HEAD, *_table("top level", plain), *_tables(sections)])


def _tables(fields: dict[str, FieldInfo], path: str = "") -> Iterator[str]:
    """A table for each section among `fields`, each followed by those of the sections inside it."""
    for name, field in fields.items():
        section = _section(field.annotation)
        if section is None:
            continue
        title, keys = f"{path}{name}", section.model_fields
        repeated = " A list of such groups." if _is_tuple(field.annotation) else ""
        yield from _table(title, keys, (section.__doc__ or "").strip() + repeated)
        yield from _tables(keys, f"{title}.")


def _table(title: str, fields: dict[str, FieldInfo], meaning: str = "") -> Iterator[str]:
    """A heading, what the section is for, its keys, and the words that stand for more than they say."""
    yield f"{'###' if '.' in title else '##'} {title}\n"
    if meaning:
        yield f"{meaning}\n"
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        yield f"| `{name}` | {_value(field.annotation)} | {_default(field)} | {_text(field.description or '')} |"
    yield ""
    for name, field in fields.items():
        if _is_enum(field.annotation):
            yield f"Values of `{title}.{name}`:\n"
            yield from (f"- `{word}`: {_text(text)}" for word, text in _members(field.annotation))
            yield ""


def _section(annotation: Any) -> type[Section] | None:
    """The section that a key holds: by itself, as an alternative to leaving it out, or in a list."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _value(annotation: Any) -> str:
    """What a key takes, in plain words: the allowed words, or a type."""
    if section := _section(annotation):
        return f"{'list of groups' if _is_tuple(annotation) else 'group'} of {len(section.model_fields)} keys"
    if _is_tuple(annotation):
        return "list of numbers" if Ellipsis in get_args(annotation) else f"list of {len(get_args(annotation))} numbers"
    if _is_enum(annotation) or get_origin(annotation) is Literal:
        words = [member.value for member in annotation] if _is_enum(annotation) else get_args(annotation)
        return ", ".join(f"`{_plain(word)}`" for word in words)
    if annotation in _TYPES:
        return _TYPES[annotation]
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return " or ".join(_value(part) for part in parts if part is not NoneType)


def _is_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _is_enum(annotation: Any) -> TypeGuard[type[StrEnum]]:
    return inspect.isclass(annotation) and issubclass(annotation, StrEnum)


def _members(enum: type[StrEnum]) -> Iterator[tuple[str, str]]:
    """Each value with the text under it, which Python keeps in the source only."""
    body = cast(ast.ClassDef, ast.parse(inspect.getsource(enum)).body[0]).body
    texts = [ast.literal_eval(node.value) for node in body if isinstance(node, ast.Expr)][1:]
    yield from zip([member.value for member in enum], texts, strict=True)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, Section):
        return "its own"
    return "left out" if field.default is None else f"`{_plain(field.default)}`"


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _text(text: str) -> str:
    """On one line of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(reference(), end="")
