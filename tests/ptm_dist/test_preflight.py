from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import DataError, UserError
from data_pipeline.tokenizers import load_tokenizer, train_tokenizer
from ptm_dist.checkpoint import latest
from ptm_dist.errors import CheckpointError, LayoutError, RecipeError, RunDirectoryError
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.preflight import preflight
from tests.ptm_dist.runs import make_recipe, run_alone, write_data

VOCAB = 400


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    words = " ".join(f"word{number} runs over {number * 7}." for number in range(300))
    (folder / "text.txt").write_text(words)
    text = [str(folder / "text.txt")]
    tokenizer = train_tokenizer(text, kind="sentencepiece-bpe", vocab_size=VOCAB, out=folder / "tokenizer")
    train_tokenizer(text, kind="sentencepiece-bpe", vocab_size=VOCAB - 10, out=folder / "other")
    write_data(folder / "data", tokenizer=tokenizer.identity)
    return folder


@pytest.fixture
def folder(template, tmp_path):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def recipe_for(folder: Path, name: str = "a", **sections) -> Recipe:
    sections["model"] = {"vocab_size": VOCAB} | sections.get("model", {})
    return make_recipe(folder, name, **sections)


def refusal(kind: type[UserError], recipe: Recipe, world_size: int = 1) -> str:
    with pytest.raises(kind) as caught:
        preflight(recipe, world_size)
    return str(caught.value)


def test_a_sound_run_gets_its_directory_and_may_be_checked_again(folder):
    recipe = recipe_for(folder)
    preflight(recipe, 1)
    preflight(recipe, 2)
    names = {path.name for path in recipe.directory.iterdir()}
    assert names == {"recipe.yaml", "checkpoints", "tensorboard", "logs"}


def test_a_run_that_was_checked_runs_and_goes_on(folder):
    preflight(recipe_for(folder, launch={"stop_at_step": 3}), 1)
    run_alone(recipe_for(folder, launch={"stop_at_step": 3}))
    preflight(recipe_for(folder), 1)
    run_alone(recipe_for(folder))
    preflight(recipe_for(folder), 1)


def test_contradictions_in_the_recipe_and_the_layout_come_first(folder):
    broken = recipe_for(folder, data={"tokenizer": "nowhere"}, model={"num_heads": 3})
    assert "model.num_heads=3" in refusal(RecipeError, broken)
    assert "layout.tensor_parallel=2" in refusal(LayoutError, recipe_for(folder, layout={"tensor_parallel": 2}), 3)
    assert "schedule.min_ratio=0" in refusal(
        RecipeError, recipe_for(folder, schedule={"kind": "exponential", "min_ratio": 0.0, "warmup_steps": 0})
    )


def test_a_missing_tokenizer_and_missing_shards_are_named(folder):
    assert "nowhere" in refusal(DataError, recipe_for(folder, data={"tokenizer": str(folder / "nowhere")}))
    assert "nowhere" in refusal(DataError, recipe_for(folder, data={"path": str(folder / "nowhere")}))


def test_a_tokenizer_that_did_not_make_the_shards_is_refused_with_both_hashes(folder):
    message = refusal(DataError, recipe_for(folder, data={"tokenizer": str(folder / "other")}))
    assert load_tokenizer(folder / "tokenizer").identity.sha256[:12] in message
    assert load_tokenizer(folder / "other").identity.sha256[:12] in message


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(folder):
    message = refusal(RecipeError, recipe_for(folder, model={"vocab_size": 64}))
    assert f"use model.vocab_size={VOCAB} or more" in message


@pytest.mark.parametrize("side", ["train", "validation"])
def test_a_truncated_shard_is_named(folder, side):
    shard = folder / "data" / side / "shard-0.tar"
    os.truncate(shard, shard.stat().st_size - 512)
    assert str(shard) in refusal(DataError, recipe_for(folder))


def test_too_little_data_says_how_many_epochs_it_means_and_which_key_allows_it(folder):
    recipe = recipe_for(folder, data={"max_epochs": 0.5})
    message = refusal(DataError, recipe)
    epochs = int(message.split("data.max_epochs=")[2].split(" ")[0])
    steps = int(message.rsplit("train ", 1)[1].split(" ")[0])
    preflight(recipe_for(folder, "b", data={"max_epochs": epochs}), 1)
    preflight(recipe_for(folder, "c", data={"max_epochs": 0.5}, training={"steps": steps}), 1)
    assert "more than data.max_epochs=0.5" in refusal(
        DataError, recipe_for(folder, "d", data={"max_epochs": 0.5}, training={"steps": steps + 1})
    )


def test_a_run_directory_of_another_recipe_is_refused_with_the_differing_key(folder):
    preflight(recipe_for(folder), 1)
    message = refusal(RunDirectoryError, recipe_for(folder, training={"seed": 8}))
    assert "training.seed: 7 -> 8" in message
    assert "choose another name or run_dir" in message
    preflight(recipe_for(folder, layout={"micro_batch_size": 1}, logging={"every": 1}), 1)


def test_a_run_directory_that_cannot_be_made_is_refused(folder):
    (folder / "a").write_text("a file")
    assert "cannot write to the run directory" in refusal(RunDirectoryError, recipe_for(folder))


def test_a_checkpoint_of_another_model_is_refused_with_what_differs(folder):
    first = recipe_for(folder, "first", launch={"stop_at_step": 3})
    run_alone(first)
    other = recipe_for(folder, "other", model={"hidden_size": 32}, checkpoint={"load_from": str(first.directory)})
    assert "model.hidden_size: 16 -> 32" in refusal(CheckpointError, other)


def test_a_checkpoint_of_other_data_is_refused(folder):
    recipe = recipe_for(folder, launch={"stop_at_step": 3})
    run_alone(recipe)
    shutil.rmtree(folder / "data")
    write_data(folder / "data", seed=1, tokenizer=load_tokenizer(folder / "tokenizer").identity)
    assert "was trained on other token shards" in refusal(CheckpointError, recipe)


def test_checkpoints_of_which_none_is_complete_are_an_error_not_a_fresh_start(folder):
    recipe = recipe_for(folder, launch={"stop_at_step": 2})
    run_alone(recipe)
    (latest(recipe.directory / "checkpoints").path / "manifest.json").unlink()
    assert "no checkpoint in" in refusal(CheckpointError, recipe)


def test_load_from_must_name_a_checkpoint_with_steps_left_to_do(folder):
    run_alone(recipe_for(folder, "first"))
    missing = recipe_for(folder, "second", checkpoint={"load_from": str(folder / "nowhere")})
    assert "no checkpoint in" in refusal(CheckpointError, missing)
    finished = recipe_for(folder, "third", checkpoint={"load_from": str(folder / "first")})
    assert "has 12 steps already" in refusal(CheckpointError, finished)
