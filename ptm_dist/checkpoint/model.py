"""A trained model out of a checkpoint, whole, in one process."""

from __future__ import annotations

from pathlib import Path

import torch

from ptm_dist.checkpoint.state import load_state
from ptm_dist.checkpoint.store import MANIFEST_FILE, CheckpointInfo, latest, read_checkpoint, verify
from ptm_dist.errors import CheckpointError
from ptm_dist.models import LanguageModel, build_model
from ptm_dist.parallel.control import ALONE
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.schema import Recipe


def load_model(path: Path) -> tuple[LanguageModel, Recipe]:
    """The model of a checkpoint in float32 on the CPU, in evaluation mode, and the recipe that trained it.

    Args:
        path: a checkpoint directory, or a run directory, of which the newest checkpoint is taken.

    Raises: CheckpointError if there is none, or if it is damaged.
    """
    info = find_checkpoint(path)
    problems = verify(info.path)
    if problems:
        raise CheckpointError("; ".join(problems))
    recipe = info.manifest.parsed_recipe()
    model = build_model(recipe.model)
    boxes = {
        f"model.{name}": LocalShard(parameter.detach(), tuple(parameter.shape), (0,) * parameter.dim())
        for name, parameter in model.named_parameters()
    }
    with torch.no_grad():
        load_state(boxes, info.path, ALONE)
    return model.eval(), recipe


def find_checkpoint(path: Path) -> CheckpointInfo:
    """The checkpoint that a user means by a checkpoint directory or a run directory.

    Raises: CheckpointError if there is none.
    """
    if (path / MANIFEST_FILE).exists():
        return read_checkpoint(path)
    for directory in (path / "checkpoints", path):
        newest = latest(directory)
        if newest is not None:
            return newest
    raise CheckpointError(f"no checkpoint in {path}; give a checkpoint directory or the directory of a run")
