"""Validation errors of a recipe as sentences: where, what, what is allowed, and the nearest valid name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from ptm_dist.recipe.schema import Recipe
from ptm_dist.recipe.source import Entry

Schema = dict[str, Any]
KeyPath = tuple[str | int, ...]


def explain(error: ValidationError, tree: Entry) -> str:
    """One message for all that is wrong with a recipe.

    Args:
        error: what pydantic found in `tree.plain()`.
        tree: the values with their places.

    Returns: one sentence, or a count and one indented line for each problem, in the order of the schema.
    """
    root = Recipe.model_json_schema()
    sentences = dict.fromkeys(
        _sentence(root, tree, detail["type"], detail["loc"]) for detail in error.errors(include_url=False)
    )
    if len(sentences) == 1:
        return next(iter(sentences))
    return "\n  ".join([f"the recipe has {len(sentences)} errors:", *sentences])


def _sentence(root: Schema, tree: Entry, kind: str, location: KeyPath) -> str:
    path, schema = _descend(root, location)
    if kind == "extra_forbidden":
        key = str(location[len(path)])
        return _unknown_key(root, schema, path, key, tree.find((*path, key)).place)
    entry = tree.find(path)
    if kind == "missing":
        parent = tree.find(path[:-1])
        return f"{parent.place}: missing key {_dotted(path)}: {_meaning(root, schema)}"
    allowed = _allowed(root, schema)
    hint = _nearest(entry.value, _choices(root, schema)) if isinstance(entry.value, str) else None
    suggestion = f"did you mean {hint}? " if hint else ""
    return f"{entry.place}: {_dotted(path) or 'the recipe'} is {_shown(entry)}; {suggestion}it must be {allowed}"


def _unknown_key(root: Schema, section: Schema, path: KeyPath, key: str, place: str) -> str:
    keys = list(_resolve(root, section)["properties"])
    everywhere = dict(_all_keys(root))
    hint = everywhere.get(key) or _nearest(key, keys)
    if hint is None and (other := _nearest(key, list(everywhere))):
        hint = everywhere[other]
    suggestion = f"; did you mean {hint}?" if hint else ";"
    owner = f"known keys of {_dotted(path)}" if path else "known keys of a recipe"
    return f"{place}: unknown key {_dotted((*path, key))}{suggestion} ({owner}: {', '.join(keys)})"


def _all_keys(root: Schema) -> Iterator[tuple[str, str]]:
    """Every leaf key name with its full dotted name; of equal names the first section wins."""
    names: dict[str, str] = {}
    for section, schema in root["properties"].items():
        for key in _resolve(root, schema).get("properties", {}):
            names.setdefault(key, f"{section}.{key}")
    yield from names.items()


def _descend(root: Schema, location: KeyPath) -> tuple[KeyPath, Schema]:
    """Follow pydantic's location as far as it names keys: it also holds names of union members."""
    path: KeyPath = ()
    schema = root
    for step in location:
        inner = _resolve(root, schema)
        if isinstance(step, str) and step in inner.get("properties", {}):
            schema = inner["properties"][step]
        elif isinstance(step, int) and inner.get("type") == "array":
            schema = _item(inner, step)
        else:
            break
        path = (*path, step)
    return path, schema


def _item(array: Schema, index: int) -> Schema:
    """Schema of one item: of its own place in a list of fixed length, the same for all in any other."""
    fixed = array.get("prefixItems", [])
    item: Schema = fixed[index] if index < len(fixed) else array["items"]
    return item


def _resolve(root: Schema, schema: Schema) -> Schema:
    """What a reference stands for; of a section that may be left out, the section."""
    sections = [member for member in schema.get("anyOf", []) if "$ref" in member]
    if len(sections) == 1 and "properties" in (section := _resolve(root, sections[0])):
        schema = {**section, **{key: value for key, value in schema.items() if key != "anyOf"}}
    if "$ref" not in schema:
        return schema
    return {**root["$defs"][schema["$ref"].rsplit("/", 1)[1]], **schema}


def _allowed(root: Schema, schema: Schema) -> str:
    schema = _resolve(root, schema)
    if "anyOf" in schema:
        return " or ".join(_allowed(root, member) for member in schema["anyOf"])
    if choices := _choices(root, schema):
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    kind = schema["type"]
    if kind == "array":
        count = f" of {len(schema['prefixItems'])}" if "prefixItems" in schema else ""
        return f"a list{count}, each {_allowed(root, _item(schema, 0))}"
    if kind == "object":
        return f"a mapping with the keys {', '.join(schema['properties'])}"
    if kind == "string":
        pattern = schema.get("pattern")
        return f"text that matches {pattern}" if pattern else f"a {schema.get('format', 'text')}"
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    return words[kind] + _bounds(schema, whole=kind == "integer")


def _bounds(schema: Schema, whole: bool) -> str:
    lowest, above, highest = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if whole and above is not None:
        lowest, above = above + 1, None
    limits = [
        f"{word} {limit:g}"
        for word, limit in (("above", above), ("of at least", lowest), ("of at most", highest))
        if limit is not None
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _choices(root: Schema, schema: Schema) -> list[str]:
    schema = _resolve(root, schema)
    if "anyOf" in schema:
        return [choice for member in schema["anyOf"] for choice in _choices(root, member)]
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [str(value) for value in values]


def _meaning(root: Schema, schema: Schema) -> str:
    resolved = _resolve(root, schema)
    if "properties" in resolved:
        return f"a section with the keys {', '.join(resolved['properties'])}"
    text = schema.get("description", "").rstrip(".")
    return f"{text[:1].lower()}{text[1:]}, {_allowed(root, schema)}" if text else _allowed(root, schema)


def _nearest(word: str, candidates: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, candidates, n=1)), None)


def _dotted(path: KeyPath) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _shown(entry: Entry) -> str:
    text = json.dumps(entry.plain(), ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
