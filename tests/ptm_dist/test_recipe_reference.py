from __future__ import annotations

from pathlib import Path

from ptm_dist.recipe.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_of_recipe_keys_is_the_one_made_from_the_schema():
    assert PAGE.read_text() == reference(), "python -m ptm_dist.recipe.reference > docs/recipes.md"


def test_every_key_says_what_it_means():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert all(len(row.split(" | ")[2]) > len(" |") + 5 for row in rows)
