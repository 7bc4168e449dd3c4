"""Every mistake of a user ends in one message that says what to do, and exit code 2."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.loading import load_recipe

SCHEDULE_FILE = Path(__file__).parents[1] / "parity" / "schedule.csv"


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
        ("training.precision=fp16", ("needs a loss scale", "training.precision=bf16, or engine=deepspeed")),
        ("deepspeed.offload_optimizer=cpu", ("has no effect with engine=native", "or use engine=deepspeed")),
        ("layout.tensor_parallel=2", ("nearest layout that works on 1 process: layout.tensor_parallel=1 (",)),
    ],
)
def test_a_recipe_that_cannot_work(ptm, workspace, override, parts):
    check(ptm("train", workspace / "recipe.yaml", override), *parts)


PIPELINE = "layout.pipeline_parallel=2"
PHASE = "training.phases=[{until_step: 3, sequence_length: 16, global_batch_size: 2}]"
BY_FILE = (PIPELINE, "layout.pipeline_schedule=file", f"layout.pipeline_schedule_file={SCHEDULE_FILE}")
ALONE = "(override) has no effect with layout.pipeline_parallel=1; leave it out, or use layout.pipeline_parallel=2 or"
LAYOUT_MISTAKES = [
    (
        2,
        ["layout.data_parallel=3"],
        "layout.data_parallel=3 (override) x layout.tensor_parallel=1 does not make the 2 ",
    ),
    (
        4,
        ["layout.tensor_parallel=3"],
        "layout.tensor_parallel=3 (override) does not divide the 4 processes of this run",
    ),
    (4, ["layout.context_parallel=3"], "layout.context_parallel=3 (override) does not divide the 4 processes"),
    (4, ["layout.pipeline_parallel=3"], "layout.pipeline_parallel=3 (override) does not divide the 4 processes"),
    (
        4,
        ["layout.tensor_parallel=2", "layout.context_parallel=3"],
        "use a product of 1, 2 or 4, or start a multiple of 6",
    ),
    (4, ["layout.zero_stage=3", "layout.data_parallel_replicate=3"], "does not divide the 4 data-parallel ranks"),
    (4, ["layout.data_parallel_replicate=2"], "layout.data_parallel_replicate=2 (override) needs layout.zero_stage 1"),
    (4, ["layout.pipeline_parallel=4"], "model.num_layers=2 (ROOT/recipe.yaml:4) is too few for the 4 stages"),
    (
        2,
        [PIPELINE, "layout.pipeline_schedule=dualpipev"],
        "model.num_layers=2 (ROOT/recipe.yaml:4) is too few for the 4",
    ),
    (2, [PIPELINE, "layout.pipeline_split=[2]"], "layout.pipeline_split=[2] (override) leaves a stage without layers"),
    (
        2,
        [PIPELINE, "layout.pipeline_stages_per_rank=2"],
        "does not suit layout.pipeline_schedule=1f1b; use 1 (or leave",
    ),
    (2, [PIPELINE, "layout.pipeline_schedule=file"], "needs layout.pipeline_schedule_file; name a file, or another"),
    (2, [PIPELINE, BY_FILE[2]], f"={SCHEDULE_FILE} (override) has no effect with layout.pipeline_schedule=1f1b"),
    (
        2,
        [*BY_FILE, "layout.micro_batch_size=1", "training.global_batch_size=7"],
        "has 6 micro-batches, a step of this recipe 7",
    ),
    (2, ["layout.pipeline_schedule=gpipe"], f"layout.pipeline_schedule=gpipe {ALONE}"),
    (2, ["layout.pipeline_split=[1]"], f"layout.pipeline_split=[1] {ALONE}"),
    (2, ["layout.pipeline_stages_per_rank=2"], f"layout.pipeline_stages_per_rank=2 {ALONE}"),
    (2, [BY_FILE[2]], f"layout.pipeline_schedule_file={SCHEDULE_FILE} {ALONE}"),
    (2, ["layout.context_method=ulysses"], "(override) has no effect with layout.context_parallel=1; leave it out"),
    (2, ["layout.sequence_parallel=true"], "(override) has no effect with layout.tensor_parallel=1; leave it out"),
    (2, ["layout.recompute_every=2"], "(override) has no effect with layout.recompute=none; leave it out"),
    (
        64,
        ["layout.context_parallel=64"],
        "ranks without a position of data.sequence_length=32 (ROOT/recipe.yaml:5); use",
    ),
    (32, ["layout.context_parallel=32", PHASE], "a position of training.phases[0].sequence_length=16 (override); use"),
    (8, [], "training.global_batch_size=4 (ROOT/recipe.yaml:8) gives some of the 8 data-parallel ranks no sample"),
    (4, [PHASE], "training.phases[0].global_batch_size=2 (override) gives some of the 4 data-parallel ranks no sample"),
    (2, ["engine=deepspeed", "layout.tensor_parallel=2"], "layout.tensor_parallel=2 (override): engine=deepspeed"),
    (2, ["engine=deepspeed", "layout.offload=optimizer"], "needs layout.zero_stage 1, 2 or 3 with engine=deepspeed"),
    (
        2,
        ["engine=megatron", "layout.zero_stage=2"],
        "engine=megatron (override) has layout.zero_stage (override) 0 and 1",
    ),
    (2, ["engine=megatron", "layout.compile=true"], "engine=megatron (override) does not compile blocks"),
]


@pytest.mark.parametrize(("nproc", "overrides", "expected"), LAYOUT_MISTAKES)
def test_a_layout_that_cannot_work_starts_nothing_and_the_one_that_is_offered_works(
    ptm, workspace, nproc, overrides, expected
):
    recipe = workspace / "recipe.yaml"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = ptm("train", recipe, "--nproc", nproc, *overrides)
    assert resource.getrusage(resource.RUSAGE_CHILDREN) == before, "a process was started"
    assert not (workspace / "run").exists()
    check(result, expected.replace("ROOT", str(workspace)))
    check_recipe(load_recipe(recipe, [*overrides, *offered(result, nproc)]), nproc, None)


def offered(result, nproc: int) -> list[str]:
    """The overrides in the last line of a message."""
    words = result.err.splitlines()[-1].removeprefix(f"nearest layout that works on {nproc} processes: ").split()
    return words[: words.index("(data_parallel")]


def test_the_layout_that_is_offered_can_be_pasted_behind_the_command(ptm, workspace):
    command = ("train", workspace / "recipe.yaml", "--nproc", 2, "layout.pipeline_parallel=3", "training.steps=2")
    refused = ptm(*command)
    assert offered(refused, 2) == ["layout.pipeline_parallel=2"]
    assert ptm(*command, *offered(refused, 2)).code == 0


def test_no_layout_is_offered_where_something_else_is_wrong(ptm, workspace):
    result = ptm("train", workspace / "recipe.yaml", "--nproc", 2, "engine=megatron", "optimizer.kind=lamb")
    check(result, "no layout works on 2 processes as long as the rest of the recipe stays as it is")
    result = ptm("train", workspace / "recipe.yaml", "--nproc", 2, "training.precision=fp16", "schedule.warmup_steps=7")
    check(result, "training.precision=fp16", "schedule.warmup_steps=7")
    assert "layout that works" not in result.err


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
    command = ("train", workspace / "recipe.yaml", *processes, f"run_dir={small_disk}", "launch.max_restarts=0")
    check(ptm(*command), f"the disk of {small_disk / 'checkpoints'} is full", "earlier checkpoints are untouched")
    kept = ptm("checkpoint", "list", small_disk, "--json").json
    assert [entry["step"] for entry in kept] == [3]
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_disk_that_stays_full_is_tried_again_before_the_run_gives_up(ptm, workspace, small_disk):
    options = (f"run_dir={small_disk}", "launch.max_restarts=1")
    result = ptm("train", workspace / "recipe.yaml", "--nproc", 2, *options)
    assert result.code == 2
    # The first life saved a step, so the second one is at a new place; it saved nothing, though it did steps again.
    assert result.err.count("starting again") == 2
    assert "starting again (0 more times without a new step) after: rank" in result.err
    assert f"error: the disk of {small_disk / 'checkpoints'} is full" in result.err


def test_nothing_to_generate_from(ptm, tmp_path):
    check(ptm("generate", "--checkpoint", tmp_path), "no checkpoint")
    check(ptm("checkpoint", "list", tmp_path / "no"), "no such run directory")
    check(ptm("checkpoint", "show", tmp_path), "no checkpoint")


@pytest.mark.parametrize("rank", ["2/2", "1", "a/b", "-1/2"])
def test_a_rank_that_is_none(ptm, workspace, rank):
    check(ptm("data", "show", workspace / "recipe.yaml", f"--rank={rank}"), rank, "such as 0/2")
