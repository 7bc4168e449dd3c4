"""`ptm checkpoint export` and `import` with --format deepspeed."""

from __future__ import annotations

import json

import pytest
import torch

from ptm_dist.checkpoint.state import SavedState


def tensors(checkpoint) -> dict[str, torch.Tensor]:
    saved = SavedState(checkpoint)
    return {name: saved.read(name) for name in saved.shapes}


def losses(run) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [loss for row in rows if row["kind"] == "train" for loss in row["losses"]]


def test_a_run_leaves_comes_back_with_the_same_bits_and_goes_on_as_if_it_had_stayed(ptm, workspace):
    assert ptm("train", workspace / "recipe.yaml", "launch.stop_at_step=3").code == 0
    left = ptm("checkpoint", "export", workspace / "run", "--format", "deepspeed", "--out", workspace / "universal")
    assert left.code == 0, left.err
    assert "of step 3" in left.out
    came = ptm("checkpoint", "import", workspace / "universal", "--format", "deepspeed", "--out", workspace / "back")
    assert came.code == 0, came.err
    original = tensors(workspace / "run" / "checkpoints" / "step-00000003")
    back = tensors(workspace / "back" / "checkpoints" / "step-00000003")
    assert original.keys() == back.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)

    here = [workspace / "recipe.yaml", f"run_dir={workspace}/second", f"checkpoint.load_from={workspace}/back"]
    assert ptm("train", *here).code == 0
    assert ptm("train", workspace / "recipe.yaml").code == 0
    assert losses(workspace / "second") == losses(workspace / "run")[3:]


@pytest.mark.parametrize("lost", ["ptm.json", "step.pt"])
def test_a_folder_of_another_program_needs_the_recipe_and_the_step_that_it_does_not_say(ptm, workspace, lost):
    assert ptm("train", workspace / "recipe.yaml", "launch.stop_at_step=3").code == 0
    universal, out = workspace / "universal", workspace / "back"
    assert ptm("checkpoint", "export", workspace / "run", "--format", "deepspeed", "--out", universal).code == 0
    for path in universal.rglob("ptm.json"):
        path.unlink()
    for path in universal.rglob(lost):
        path.unlink()
    command = ["checkpoint", "import", universal, "--format", "deepspeed", "--out", out]
    refused = ptm(*command)
    assert (refused.code, "give one by --recipe" in refused.err, out.exists()) == (2, True, False)
    command += ["--recipe", workspace / "recipe.yaml"]
    if lost == "step.pt":
        refused = ptm(*command)
        assert (refused.code, "give them by --step" in refused.err, out.exists()) == (2, True, False)
        command += ["--step", "3"]
    assert ptm(*command).code == 0
    here = [workspace / "recipe.yaml", f"run_dir={workspace}/second", f"checkpoint.load_from={out}"]
    assert ptm("train", *here).code == 0
    assert len(losses(workspace / "second")) == 3


def test_mistakes_are_one_message_and_leave_nothing(ptm, workspace):
    assert ptm("train", workspace / "recipe.yaml", "launch.stop_at_step=3").code == 0
    universal, out = workspace / "universal", workspace / "back"
    assert ptm("checkpoint", "export", workspace / "run", "--format", "deepspeed", "--out", universal).code == 0
    again = ptm("checkpoint", "export", workspace / "run", "--format", "deepspeed", "--out", universal)
    assert "exists already" in again.err
    nothing = ptm("checkpoint", "import", workspace / "data", "--format", "deepspeed", "--out", out)
    assert "is no universal checkpoint of DeepSpeed" in nothing.err
    (file,) = universal.rglob("head.norm.weight/fp32.pt")
    file.write_bytes(file.read_bytes()[:-100])
    damaged = ptm("checkpoint", "import", universal, "--format", "deepspeed", "--out", out)
    assert "head.norm.weight/fp32.pt cannot be read" in damaged.err
    file.unlink()
    file.parent.rename(file.parent.with_name("head.other.weight"))
    other = ptm("checkpoint", "import", universal, "--format", "deepspeed", "--out", out)
    assert "lacks head.norm.weight and has head.other.weight too many" in other.err
    for result in (again, nothing, damaged, other):
        assert (result.code, result.err.count("error: "), "Traceback" in result.err) == (2, 1, False)
    assert not out.exists()
