"""Every mistake of a user ends in one message that says what to do, and exit code 2."""

from __future__ import annotations

import json

import pytest


def check(result, *parts: str) -> None:
    assert result.code == 2, result
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err + result.out
    for part in parts:
        assert part in result.err


def flip_a_bit(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def some_shard(workspace):
    return next(iter(sorted((workspace / "data" / "train").glob("*.tar"))))


def test_missing_corpus(ptm, tmp_path):
    missing = tmp_path / "nothing-*.jsonl"
    check(ptm("tokenizer", "train", "--input", missing, "--vocab-size", 512, "--out", tmp_path / "t"), str(missing))
    assert not (tmp_path / "t").exists()


def test_a_vocabulary_too_large_for_the_corpus(ptm, prepared, tmp_path):
    corpus = prepared / "corpus.jsonl"
    result = ptm("tokenizer", "train", "--input", corpus, "--vocab-size", 60000, "--out", tmp_path / "t")
    check(result, "60000")


def test_no_tokenizer_where_the_command_says(ptm, prepared, tmp_path):
    arguments = ("--input", prepared / "corpus.jsonl", "--tokenizer", tmp_path / "no", "--out", tmp_path / "d")
    check(ptm("data", "build", *arguments), str(tmp_path / "no"))


def test_shards_of_another_tokenizer(ptm, prepared, workspace):
    other = workspace / "other"
    made = ptm("tokenizer", "train", "--input", prepared / "corpus.jsonl", "--vocab-size", 500, "--out", other)
    assert made.code == 0, made.err
    result = ptm("train", workspace / "recipe.yaml", f"data.tokenizer={other}")
    check(result, "another tokenizer", "data.tokenizer")


def test_a_truncated_shard(ptm, workspace):
    shard = some_shard(workspace)
    shard.write_bytes(shard.read_bytes()[:-512])
    check(ptm("train", workspace / "recipe.yaml"), shard.name)
    check(ptm("data", "verify", workspace / "data"), shard.name)


@pytest.mark.parametrize("nproc", [None, 2])
def test_a_flipped_bit_in_a_shard(ptm, workspace, nproc):
    shard = some_shard(workspace)
    manifest = json.loads((workspace / "data" / "train" / "manifest.json").read_text())
    flip_a_bit(shard, manifest["shards"][0]["members"]["tokens.bin"]["offset"] + 7)
    processes = () if nproc is None else ("--nproc", nproc)
    check(ptm("train", workspace / "recipe.yaml", *processes), shard.name, "tokens.bin")
    check(ptm("data", "verify", workspace / "data"), shard.name)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.vocab_size=200", ("model.vocab_size=200", "512")),
        ("data.sequence_length=64", ("data.sequence_length=64", "model.max_positions=32")),
        ("layout.tensor_parallel=3", ("layout.tensor_parallel=3",)),
        ("model.num_heads=5", ("model.num_heads=5", "model.hidden_size=32")),
        ("layout.data_parallel=2", ("layout.data_parallel=2",)),
        ("training.steps=5000", ("epochs", "data.max_epochs")),
        ("data.path=/nowhere", ("/nowhere",)),
        ("training.stps=5", ("training.stps", "did you mean")),
        ("checkpoint.load_from=/nowhere", ("/nowhere",)),
    ],
)
def test_a_recipe_that_cannot_work(ptm, workspace, override, parts):
    check(ptm("train", workspace / "recipe.yaml", override), *parts)


def test_a_layout_that_does_not_fit_the_processes_starts_none(ptm, workspace):
    result = ptm("train", workspace / "recipe.yaml", "--nproc", 2, "layout.data_parallel=3")
    check(result, "layout.data_parallel=3")
    assert not (workspace / "run").exists()


def test_no_recipe_file(ptm, tmp_path):
    check(ptm("train", tmp_path / "no.yaml"), "no.yaml")


def test_a_run_directory_of_another_recipe_and_a_checkpoint_of_another_model(ptm, workspace):
    recipe = workspace / "recipe.yaml"
    assert ptm("train", recipe, "launch.stop_at_step=1").code == 0
    check(ptm("train", recipe, "optimizer.learning_rate=0.5"), "optimizer.learning_rate", "run_dir")
    start = (f"run_dir={workspace}/other", f"checkpoint.load_from={workspace}/run")
    check(ptm("train", recipe, *start, "model.num_layers=3"), "another model", "model.num_layers")


def test_a_run_directory_that_cannot_be_written(ptm, workspace):
    (workspace / "file").write_text("in the way")
    result = ptm("train", workspace / "recipe.yaml", f"run_dir={workspace}/file/run")
    check(result, "file/run")


@pytest.mark.parametrize("nproc", [None, 2])
def test_a_disk_that_fills_up_while_saving(ptm, workspace, small_disk, nproc):
    processes = () if nproc is None else ("--nproc", nproc)
    command = ("train", workspace / "recipe.yaml", *processes, f"run_dir={small_disk}")
    check(ptm(*command), f"the disk of {small_disk / 'checkpoints'} is full", "earlier checkpoints are untouched")
    kept = ptm("checkpoint", "list", small_disk, "--json").json
    assert [entry["step"] for entry in kept] == [3]
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-00000003"]


def test_nothing_to_generate_from(ptm, tmp_path):
    check(ptm("generate", "--checkpoint", tmp_path), "no checkpoint")
    check(ptm("checkpoint", "list", tmp_path / "no"), "no such run directory")
    check(ptm("checkpoint", "show", tmp_path), "no checkpoint")


@pytest.mark.parametrize("rank", ["2/2", "1", "a/b", "-1/2"])
def test_a_rank_that_is_none(ptm, workspace, rank):
    check(ptm("data", "show", workspace / "recipe.yaml", f"--rank={rank}"), rank, "such as 0/2")
