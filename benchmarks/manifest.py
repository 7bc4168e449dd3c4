"""What the manifest of a checkpoint that a benchmark makes says of it."""

from __future__ import annotations

from datetime import UTC, datetime

import torch

from ptm_dist.checkpoint.store import Description
from ptm_dist.recipe.fingerprint import fingerprint, model_fingerprint
from ptm_dist.recipe.schema import Recipe


def describe(recipe: Recipe, step: int, samples: int) -> Description:
    """A single process, no data, no figures."""
    return Description(
        step=step,
        samples=samples,
        recipe=recipe.model_dump(mode="json"),
        recipe_fingerprint=fingerprint(recipe),
        model_fingerprint=model_fingerprint(recipe),
        layout="single process",
        data_fingerprint="none",
        metrics={},
        torch_version=torch.__version__,
        world_size=1,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
