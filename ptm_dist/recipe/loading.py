"""Read a recipe from YAML with `base:` files and dotted overrides; write it back resolved."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from ptm_dist.errors import RecipeError
from ptm_dist.recipe.problems import explain
from ptm_dist.recipe.schema import Recipe
from ptm_dist.recipe.source import Entry, RecipeDumper, merge, parse_yaml, read_tree

_OVERRIDE = re.compile(r"(?P<key>[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)=(?P<value>.*)", re.DOTALL)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file. Its key `base` names files, relative to it, that it is laid over: a path or a list.
        overrides: `section.key=value` texts, the value in YAML; the last one wins.

    Returns: the recipe, every value typed and within its bounds. Whether values fit each other is for
        :func:`ptm_dist.recipe.checks.check_recipe`.
    Raises: RecipeError: one message with every problem, each with file and line or with the override's text.
    """
    try:
        tree = read_tree(path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file (looked in {Path.cwd()})") from None
    for text in overrides:
        tree = merge(tree, _override(text), keep_place=True)
    try:
        # JSON is where pydantic's strict mode still reads text as paths and enums, and lists as tuples.
        recipe = Recipe.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        raise RecipeError(explain(error, tree)) from None
    return recipe.written_at(dict(tree.places()))


def dump_recipe(recipe: Recipe) -> str:
    """Every value of a recipe, defaults included, as YAML that :func:`load_recipe` reads back equal."""
    values = recipe.model_dump(mode="json")
    return yaml.dump(values, Dumper=RecipeDumper, sort_keys=False, default_flow_style=None, width=100)


def _override(text: str) -> Entry:
    place = f"override {text!r}"
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise RecipeError(f"{place}: expected section.key=value, such as layout.tensor_parallel=2")
    if match["key"].split(".")[0] == "base":
        raise RecipeError(f"{place}: base names files inside a recipe file; it cannot be overridden")
    entry = parse_yaml(match["value"], lambda mark: place, empty=Entry(None, place))
    for key in reversed(match["key"].split(".")):
        entry = Entry({key: entry}, place)
    return entry
