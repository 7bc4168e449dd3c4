"""YAML text to a tree of values that remember where they stand, so that an error can name file and line.

Scalars follow the YAML 1.2 core schema (`1e-4` is a number, `no` is text), with `_` allowed between digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ptm_dist.errors import RecipeError

Scalar = str | int | float | bool | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]

_TAG = "tag:yaml.org,2002:"
_SCALARS = [
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", list("-+.")),
]
_DEEPEST = 20


@dataclass(frozen=True)
class Entry:
    """One value of a recipe, and where it was written (`file:line`, or the override's text)."""

    value: Scalar | list[Entry] | dict[str, Entry]
    place: str

    def plain(self) -> Plain:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    def find(self, path: tuple[str | int, ...]) -> Entry:
        """The entry at `path`, or the deepest one on the way to it that exists."""
        entry = self
        for step in path:
            inner = entry._child(step)
            if inner is None:
                break
            entry = inner
        return entry

    def places(self, key: str = "") -> Iterator[tuple[str, str]]:
        """Where every value below was written, by key; `key` is this entry's own."""
        yield key, self.place
        if isinstance(self.value, dict):
            for name, entry in self.value.items():
                yield from entry.places(f"{key}.{name}" if key else name)
        if isinstance(self.value, list):
            for index, entry in enumerate(self.value):
                yield from entry.places(f"{key}[{index}]")

    def _child(self, step: str | int) -> Entry | None:
        if isinstance(self.value, dict) and isinstance(step, str):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            return self.value[step]
        return None


def merge(below: Entry, above: Entry, *, keep_place: bool = False) -> Entry:
    """Lay `above` over `below`: mappings are merged key by key, anything else is replaced.

    Args:
        below: the values to start from.
        above: the values that win.
        keep_place: a merged mapping is said to stand where `below` does, rather than where `above` does.
    """
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    merged = dict(below.value)
    for key, entry in above.value.items():
        merged[key] = merge(merged[key], entry, keep_place=keep_place) if key in merged else entry
    return Entry(merged, below.place if keep_place else above.place)


def read_tree(path: Path, readers: tuple[Path, ...] = ()) -> Entry:
    """Read a recipe file over its `base:` files.

    Args:
        path: the YAML file; `base:` in it is a path or a list of paths relative to its folder.
        readers: the files that led here through `base:`, outermost first.

    Returns: the merged mapping, without the key `base`.
    Raises: RecipeError for an unreadable file, bad YAML, or a file that is its own base.
    """
    text = _read_text(path)
    if path.resolve() in [reader.resolve() for reader in readers]:
        chain = " -> ".join(str(file) for file in (*readers, path))
        raise RecipeError(f"{path}: a file cannot be its own base ({chain}); remove one of these `base:` lines")
    own = parse_yaml(text, lambda mark: f"{path}:{mark.line + 1}", empty=Entry({}, str(path)))
    if not isinstance(own.value, dict):
        raise RecipeError(f"{own.place}: a recipe is a mapping of `key: value` lines, not {own.plain()!r}")
    keys = dict(own.value)
    base = keys.pop("base", None)
    tree = Entry({}, str(path))
    for name in _base_names(base) if base else []:
        try:
            tree = merge(tree, read_tree(path.parent / name, (*readers, path)))
        except FileNotFoundError as error:
            raise RecipeError(f"{base.place if base else path}: base file {error.filename} not found") from None
    return merge(tree, Entry(keys, str(path)))


def parse_yaml(text: str, place: Callable[[yaml.Mark], str], empty: Entry) -> Entry:
    """Parse one YAML document.

    Args:
        text: the document.
        place: names a position in it for messages.
        empty: what a document without content stands for.

    Raises: RecipeError naming the place, for anything that is not a plain YAML tree.
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{place(mark)}, column {mark.column + 1}" if mark else empty.place
        raise RecipeError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise RecipeError(f"{empty.place}: not valid YAML: {error}") from None
    except RecursionError:
        raise RecipeError(f"{empty.place}: nested too deeply for a recipe") from None
    return _Converter(place).entry(node) if node is not None else empty


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot read this recipe file: {error}") from None


def _base_names(base: Entry) -> list[str]:
    names = base.plain()
    names = names if isinstance(names, list) else [names]
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise RecipeError(f"{base.place}: base must be a path or a list of paths, relative to this file")
    return [str(name) for name in names]


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars; no aliases: `base:` says what recipes share."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (the class's own table, in place of YAML 1.1's)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not used in recipes", mark)
        return super().compose_node(parent, index)


class RecipeDumper(yaml.SafeDumper):
    """Writes YAML that the reader of recipes takes back unchanged."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, RecipeDumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^{_pattern}\Z"), _first)


class _Converter:
    """Turns YAML nodes into entries."""

    def __init__(self, place: Callable[[yaml.Mark], str]) -> None:
        self.place = place

    def entry(self, node: yaml.Node, depth: int = 0) -> Entry:
        place = self.place(node.start_mark)
        if depth > _DEEPEST:
            raise RecipeError(f"{place}: nested too deeply for a recipe")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Entry(self._mapping(node, depth), place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Entry([self.entry(item, depth + 1) for item in node.value], place)
        if isinstance(node, yaml.ScalarNode):
            return Entry(self._scalar(node, place), place)
        raise RecipeError(f"{place}: the YAML tag {node.tag} is not used in recipes")

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Entry]:
        mapping: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{place}: a key must be a plain name")
            key = _encodable(key_node.value, place)
            if key in mapping:
                raise RecipeError(f"{place}: key {key} is given twice; first at {mapping[key].place}")
            value = self.entry(value_node, depth + 1)
            mapping[key] = Entry(value.value, place)
        return mapping

    def _scalar(self, node: yaml.ScalarNode, place: str) -> Scalar:
        kind = node.tag.removeprefix(_TAG)
        text: str = node.value
        try:
            match kind:
                case "str":
                    return _encodable(text, place)
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return _bounded(_integer(text))
                case "float":
                    return _finite(float(text.replace(".inf", "inf").replace(".nan", "nan")))
        except (ValueError, KeyError):
            shown = text if len(text) <= 40 else text[:40] + "..."
            raise RecipeError(f"{place}: {shown!r} is not a {kind} that a recipe can hold") from None
        raise RecipeError(f"{place}: the YAML tag {node.tag} is not used in recipes")


def _integer(text: str) -> int:
    digits = text.lower()
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0o") else 10
    return int(digits, base)


def _bounded(value: int) -> int:
    if abs(value) >= 2**63:
        raise ValueError("beyond 64 bits")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _encodable(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RecipeError(f"{place}: {text!r} is not valid Unicode text") from None
    return text
