from __future__ import annotations

from pathlib import Path

from ptm_dist.recipe.reference import reference
from ptm_dist.recipe.schema import BatchRampSection, Family, PhaseSection, Precision, Recompute

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def _part(title: str) -> str:
    """The page from a heading to the next one."""
    _, _, rest = reference().partition(f"# {title}\n")
    return rest.partition("\n#")[0]


def test_the_page_of_recipe_keys_is_the_one_made_from_the_schema():
    assert PAGE.read_text() == reference(), "python -m ptm_dist.recipe.reference > docs/recipes.md"


def test_every_key_says_what_it_means():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    for row in rows:
        _, value, default, meaning = row.strip("| ").split(" | ")
        assert value
        assert default
        assert len(meaning) > 5


def test_groups_inside_a_section_have_a_table_of_their_own():
    for title, section in (("training.batch_ramp", BatchRampSection), ("training.phases", PhaseSection)):
        assert all(f"\n| `{key}` |" in _part(title) for key in section.model_fields)
    assert "A list of such groups." in _part("training.phases")
    assert "A list of such groups." not in _part("training.batch_ramp")


def test_a_key_that_takes_words_lists_them():
    row = next(line for line in _part("objective").splitlines() if line.startswith("| `kind`"))
    assert "| `causal`, `mlm`, `mlm_nsp`, `mlm_sop` | `causal` |" in row
    row = next(line for line in _part("data").splitlines() if line.startswith("| `max_epochs`"))
    assert "| number | `1.0` |" in row


def test_every_word_of_an_enumeration_is_explained_under_its_table():
    for title, words in (("model", Family), ("training", Precision), ("layout", Recompute)):
        for word in words:
            line = next(line for line in _part(title).splitlines() if line.startswith(f"- `{word.value}`: "))
            assert line.endswith(".")
