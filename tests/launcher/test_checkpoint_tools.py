"""`ptm checkpoint verify`, `tensors`, `diff` and `reshard`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.contents import Contents
from ptm_dist.checkpoint.verification import inspect


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> Path:
    """A folder with a recipe and a run of it that stopped after three of its six steps."""
    from launcher.commands.train import run_recipe
    from ptm_dist.recipe.loading import load_recipe
    from tests.launcher.conftest import RECIPE

    root = tmp_path_factory.mktemp("trained")
    for name in ("tokenizer", "data"):
        shutil.copytree(prepared / name, root / name)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    overrides = ["launch.stop_at_step=3", "checkpoint.every=1"]
    assert run_recipe(load_recipe(root / "recipe.yaml", overrides), None) == 0
    return root


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run of this test's own."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step-00000003"


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [loss for row in rows if row["kind"] == "train" for loss in row["losses"]]


def test_a_sound_run_is_verified_checkpoint_by_checkpoint(ptm, run):
    result = ptm("checkpoint", "verify", run)
    assert result.code == 0
    assert [line.split(":")[0].split()[0] for line in result.out.splitlines()] == ["[1/2]", "[2/2]"]
    assert result.out.count(": sound, 2 files, ") == 2
    one = ptm("checkpoint", "verify", newest(run), "--json")
    assert one.code == 0
    (verdict,) = one.json
    assert (verdict["path"], verdict["problems"], verdict["files"]) == (str(newest(run)), [], 2)


def test_every_flipped_byte_of_every_file_is_found_and_its_file_named(run):
    checkpoint = newest(run)
    for file in (".metadata", "__0_0.distcp", "manifest.json"):
        content = (checkpoint / file).read_bytes()
        for place in range(0, len(content), max(97, 97 * (len(content) // (97 * 60)))):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            (checkpoint / file).write_bytes(flipped)
            assert any(file in problem for problem in inspect(checkpoint).problems)
        (checkpoint / file).write_bytes(content)
    assert inspect(checkpoint).is_sound


def test_the_tensor_that_a_flipped_byte_belongs_to_is_named(run):
    checkpoint = newest(run)
    data = checkpoint / "__0_0.distcp"
    content = data.read_bytes()
    for tensor in Contents(checkpoint).tensors.values():
        (box,) = tensor.boxes
        raw = Contents(checkpoint).read(tensor.name).contiguous().view(torch.uint8).numpy().tobytes()
        place = content.index(raw, box.begin) + len(raw) // 2
        assert place < box.begin + box.length
        flipped = bytearray(content)
        flipped[place] ^= 16
        data.write_bytes(flipped)
        (problem,) = inspect(checkpoint).problems
        assert problem.endswith(
            f"__0_0.distcp is damaged: its bytes are not those that were saved (tensors: {tensor.name})"
        )
        data.write_bytes(content)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "long"])
def test_a_file_that_is_missing_too_short_or_too_long_is_named_and_others_still_verified(ptm, run, file, damage):
    path = newest(run) / file
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        os.truncate(path, path.stat().st_size - 1)
    else:
        with path.open("ab") as stream:
            stream.write(b"x")
    result = ptm("checkpoint", "verify", run, "--json")
    assert result.code == 1
    before, after = result.json
    assert before["problems"] == []
    assert len(after["problems"]) == 1
    assert file in after["problems"][0]
    text = ptm("checkpoint", "verify", run)
    assert (text.code, "DAMAGED" in text.out, file in text.out) == (1, True, True)


def test_a_file_too_many_is_named(ptm, run):
    (newest(run) / "notes").mkdir()
    (newest(run) / "notes" / "mine.txt").write_text("x")
    result = ptm("checkpoint", "verify", newest(run))
    assert result.code == 1
    assert "notes/mine.txt is no part of the checkpoint" in result.out


def test_a_folder_without_checkpoints_is_a_mistake_and_no_sound_checkpoint(ptm, tmp_path):
    result = ptm("checkpoint", "verify", tmp_path)
    assert (result.code, "no checkpoint in" in result.err) == (2, True)


def test_tensors_are_listed_with_shapes_formats_and_boxes(ptm, run):
    found = ptm("checkpoint", "tensors", run, "--json").json
    shapes = {tensor["name"]: tensor["shape"] for tensor in found["tensors"]}
    assert shapes["model.embeddings.token.weight"] == [512, 32] == shapes["optimizer.embeddings.token.weight.exp_avg"]
    assert {tensor["dtype"] for tensor in found["tensors"]} == {"float32"}
    assert found["layout"] == "single process"
    for tensor in found["tensors"]:
        assert tensor["bytes"] == 4 * torch.Size(tensor["shape"]).numel()
        assert [(box["shape"], box["offset"]) for box in tensor["boxes"]] == [
            (tensor["shape"], [0] * len(tensor["shape"]))
        ]
    text = ptm("checkpoint", "tensors", run, "--boxes").out
    assert "model.embeddings.token.weight" in text
    assert "__0_0.distcp" in text


def test_a_checkpoint_cut_for_four_processes_is_equal_and_a_run_goes_on_from_it(ptm, trained, tmp_path):
    layout = ["--layout", "layout.tensor_parallel=2", "--layout", "layout.zero_stage=3"]
    done = ptm("checkpoint", "reshard", trained / "run", tmp_path / "for-4", "--ranks", "4", *layout)
    assert done.code == 0, done.err
    assert "in 4 files for ZeRO-3 x2, tensor parallel 2" in done.out
    same = ptm("checkpoint", "diff", trained / "run", tmp_path / "for-4")
    assert (same.code, "0 are not" not in same.out) == (0, False)
    assert ptm("checkpoint", "verify", tmp_path / "for-4").code == 0
    found = ptm("checkpoint", "tensors", tmp_path / "for-4", "--json").json["tensors"]
    assert {len(tensor["boxes"]) for tensor in found} == {2, 4}

    here = [trained / "recipe.yaml", f"run_dir={tmp_path}/second", f"checkpoint.load_from={tmp_path}/for-4"]
    assert ptm("train", *here).code == 0
    whole = [trained / "recipe.yaml", f"run_dir={tmp_path}/whole"]
    assert ptm("train", *whole).code == 0
    assert losses(tmp_path / "second") == losses(tmp_path / "whole")[3:]


def test_what_differs_is_said_and_gives_exit_code_1(ptm, run):
    a, b = run / "checkpoints" / "step-00000002", newest(run)
    result = ptm("checkpoint", "diff", a, b)
    assert result.code == 1
    assert "step: 2 -> 3" in result.out
    found = ptm("checkpoint", "diff", a, b, "--json").json
    assert found["equal"] is False
    first, second = Contents(a), Contents(b)
    for row in found["difference"]["tensors"]:
        apart = (first.read(row["name"]).double() - second.read(row["name"]).double()).abs()
        assert row["absolute"] == apart.max().item()
    assert len(found["difference"]["tensors"]) + found["difference"]["equal_tensors"] == len(first.tensors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "3", "--layout", "layout.tensor_parallel=2"], "does not divide the 3 processes"),
        (["--layout", "training.steps=9"], "only keys of the layout section"),
        (["--layout", "layout.tensor_paralel=2"], "tensor_paralel"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(ptm, run, tmp_path, arguments, message):
    result = ptm("checkpoint", "reshard", run, tmp_path / "new", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "recipe.yaml" not in result.err
    assert not (tmp_path / "new").exists()
