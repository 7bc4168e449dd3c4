from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptm_dist.errors import RecipeError
from ptm_dist.recipe.loading import dump_recipe, load_recipe
from ptm_dist.recipe.schema import Precision, Recipe

MINIMAL = """\
name: small
model:
  vocab_size: 128
  hidden_size: 32
  num_layers: 2
  num_heads: 4
data:
  path: runs/small/data
  tokenizer: runs/small/tokenizer
  sequence_length: 16
optimizer:
  learning_rate: 1e-3
training:
  steps: 1_000
  global_batch_size: 8
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return write(tmp_path / "recipe.yaml", MINIMAL)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_values_are_typed_and_left_out_ones_take_their_defaults(recipe_file: Path):
    recipe = load_recipe(recipe_file)
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.training.steps == 1000
    assert recipe.training.precision is Precision.BF16
    assert recipe.data.path == "runs/small/data"
    assert recipe.optimizer.betas == (0.9, 0.95)


def test_overrides_win_in_their_order_and_are_parsed_as_yaml(recipe_file: Path):
    texts = ["training.steps=2", "training.steps=3", "optimizer.betas=[0.8, 0.9]", "layout={zero_stage: 1}"]
    recipe = load_recipe(recipe_file, [*texts, "model.ffn_hidden_size=null", "layout.micro_batch_size=2"])
    assert recipe.training.steps == 3
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert (recipe.layout.zero_stage, recipe.layout.micro_batch_size) == (1, 2)


def test_a_file_wins_over_its_bases_and_a_later_base_over_an_earlier_one(tmp_path: Path):
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared/minimal.yaml", MINIMAL)
    write(tmp_path / "shared/long.yaml", "training:\n  steps: 7\n  seed: 5\nmodel:\n  num_layers: 3\n")
    own = "base: [shared/minimal.yaml, shared/long.yaml]\ntraining:\n  seed: 6\n"
    recipe = load_recipe(write(tmp_path / "own.yaml", own))
    assert (recipe.training.steps, recipe.training.seed, recipe.model.num_layers) == (7, 6, 3)
    assert recipe.training.global_batch_size == 8


def test_unknown_key_names_file_line_and_nearest_key(recipe_file: Path):
    write(recipe_file, MINIMAL + "layout:\n  zero_stage: 1\n  tensor_paralel: 2\n")
    text = message(recipe_file)
    assert text.startswith(f"{recipe_file}:18: unknown key layout.tensor_paralel; did you mean tensor_parallel? ")
    assert "known keys of layout: data_parallel, data_parallel_replicate" in text


def test_unknown_key_that_belongs_to_another_section_is_sent_there(recipe_file: Path):
    text = message(recipe_file, "training.micro_batch_size=4")
    assert text.startswith("override 'training.micro_batch_size=4': unknown key training.micro_batch_size")
    assert "did you mean layout.micro_batch_size?" in text


def test_an_error_in_a_base_names_the_base_and_its_line(tmp_path: Path):
    base = write(tmp_path / "base.yaml", MINIMAL.replace("steps: 1_000", "steps: many"))
    text = message(write(tmp_path / "own.yaml", "base: base.yaml\nname: own\n"))
    assert text == f'{base}:14: training.steps is "many"; it must be a whole number of at least 1'


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("layout.recompute=ful", "did you mean full? it must be one of none, selective, full"),
        ("layout.zero_stage=4", "layout.zero_stage is 4; it must be one of 0, 1, 2, 3"),
        ("layout.data_parallel=0", "layout.data_parallel is 0; it must be a whole number of at least 1 or auto"),
        ("layout.compile=yes", 'layout.compile is "yes"; it must be true or false'),
        ("training.steps=1e5", "training.steps is 100000.0; it must be a whole number of at least 1"),
        ("training.steps=true", "training.steps is true; it must be a whole number of at least 1"),
        ("schedule.min_ratio=2", "schedule.min_ratio is 2; it must be a number of at least 0 and of at most 1"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate is 0; it must be a number above 0"),
        ("optimizer.learning_rate=.inf", "'.inf' is not a float that a recipe can hold"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer.betas[1] is 1.5; it must be a number of at least 0"),
        ("optimizer.betas=0.9", "optimizer.betas is 0.9; it must be a list of 2"),
        ("data.path=3", "data.path is 3; it must be a text"),
        ("model=3", "model is 3; it must be a mapping with the keys family, vocab_size"),
        ("name=a/b", 'name is "a/b"; it must be text that matches'),
        ("base=x.yaml", "it cannot be overridden"),
        ("layout.tensor_parallel", "expected section.key=value, such as layout.tensor_parallel=2"),
        ("a=[", "not valid YAML"),
        ("data.path=!!python/object:os.system x", "the YAML tag"),
    ],
)
def test_a_wrong_override_is_quoted_with_what_is_allowed(recipe_file: Path, override: str, expected: str):
    text = message(recipe_file, override)
    assert text.startswith(f"override {override!r}")
    assert expected in text
    assert "\n" not in text


def test_missing_keys_are_named_with_their_meaning(recipe_file: Path):
    write(recipe_file, MINIMAL.replace("  hidden_size: 32\n", ""))
    expected = "missing key model.hidden_size: width of the residual stream, a whole number of at least 1"
    assert message(recipe_file) == f"{recipe_file}:2: {expected}"
    assert message(recipe_file, "model.num_heads=2") == f"{recipe_file}:2: {expected}"


def test_all_errors_are_listed_at_once(recipe_file: Path):
    lines = message(recipe_file, "training.steps=0", "model.depth=3", "layout.recompute=some").splitlines()
    assert lines[0] == "the recipe has 3 errors:"
    assert [line.split("'")[1] for line in lines[1:]] == [
        "model.depth=3",
        "training.steps=0",
        "layout.recompute=some",
    ]


def test_an_empty_file_misses_every_required_key(recipe_file: Path):
    text = message(write(recipe_file, "# nothing\n"))
    assert f"{recipe_file}: missing key name" in text
    assert f"{recipe_file}: missing key model: a section with the keys" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nmodel: {b: c: d}\n", ":2, column 13: not valid YAML: "),
        ("name: a\nmodel:\n\tb: 3\n", ":3, column 1: not valid YAML: "),
        ("name: a\nname: b\n", ":2: key name is given twice; first at "),
        ("- a\n- b\n", ":1: a recipe is a mapping"),
        ("a: &x 1\nb: *x\n", ":2, column 4: not valid YAML: aliases"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("? [a, b]\n: 3\n", ":1: a key must be a plain name"),
        ("name: !!set {a}\n", ":1: the YAML tag"),
        ("name: 99999999999999999999\n", ":1: '99999999999999999999' is not a int that a recipe can hold"),
        ("base: 3\n", ":1: base must be a path"),
        ("base: gone.yaml\n", ":1: base file "),
    ],
)
def test_text_that_is_no_recipe_is_refused_with_its_place(recipe_file: Path, text: str, expected: str):
    refused = message(write(recipe_file, text))
    assert refused.startswith(str(recipe_file))
    assert expected in refused


def test_a_circle_of_bases_is_shown(tmp_path: Path):
    first = write(tmp_path / "first.yaml", "base: second.yaml\n")
    second = write(tmp_path / "second.yaml", "base: first.yaml\n")
    assert f"{first} -> {second} -> {first}" in message(first)


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    assert message(tmp_path / "gone.yaml").startswith(f"{tmp_path / 'gone.yaml'}: no such recipe file")
    assert "cannot read this recipe file" in message(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read this recipe file" in message(tmp_path / "binary.yaml")


FRAGMENTS = st.sampled_from(
    [
        *("name", "model:", "base: ", "<<: ", "? ", "- ", ": ", ",", "[", "]", "{", "}", "\n  ", "\n", "\t", "\0", "#"),
        *("&a ", "*a", "!!", "!!int ", "'", '"', "|", ">", "%YAML", "---", "0x", "1e9", ".inf", "~"),
        *("\\ud800", "\\U00110000"),
    ]
)
TEXTS = st.one_of(st.text(max_size=60), st.lists(FRAGMENTS, max_size=14).map("".join))


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_no_text_leaks_anything_but_a_recipe_error(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    str(caught.value).encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(key=st.text(max_size=12), text=TEXTS)
def test_no_override_leaks_anything_but_a_recipe_error(tmp_path_factory: pytest.TempPathFactory, key: str, text: str):
    path = write(tmp_path_factory.getbasetemp() / "fuzz-base.yaml", MINIMAL)
    for override in (f"{key}={text}", f"model.hidden_size={text}", text):
        try:
            assert isinstance(load_recipe(path, [override]), Recipe)
        except RecipeError as error:
            str(error).encode("utf-8")


def test_deep_nesting_is_refused(recipe_file: Path):
    assert "nested too deeply" in message(recipe_file, "model.hidden_size=" + "[" * 5000)
    assert "nested too deeply" in message(recipe_file, "model.hidden_size=" + "[" * 50 + "]" * 50)


@settings(max_examples=60, deadline=None)
@given(
    path=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
    rate=st.floats(min_value=1e-12, max_value=1e6),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True),
)
@example(path="\x85", rate=1e-5, name="1e5")
@example(path="two\nlines: # \u2028", rate=1.0, name="null")
def test_a_dumped_recipe_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, path: str, rate: float, name: str):
    folder = tmp_path_factory.getbasetemp()
    recipe = load_recipe(write(folder / "minimal.yaml", MINIMAL))
    changed = recipe.model_copy(
        update={
            "name": name,
            "data": recipe.data.model_copy(update={"path": path}),
            "optimizer": recipe.optimizer.model_copy(update={"learning_rate": rate}),
        }
    )
    assert load_recipe(write(folder / "dumped.yaml", dump_recipe(changed))) == changed
