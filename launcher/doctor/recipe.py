"""What one recipe needs of a node: room for checkpoints, memory on devices, data that can be read."""

from __future__ import annotations

import math

from data_pipeline.errors import UserError
from data_pipeline.tokenizers import load_tokenizer
from launcher.doctor.findings import Finding, Level, Needs
from ptm_dist.models import parameter_shapes
from ptm_dist.optim.build import slot_names
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.activations import MASTER_BYTES
from ptm_dist.training.data import RecipeData
from ptm_dist.training.memory import estimate_memory

_CHECKPOINTS = 2  # the new one is complete before an old one goes


def needs(recipe: Recipe, world_size: int | None) -> Needs:
    """Room on each node.

    Args:
        recipe: of the run.
        world_size: processes of the run; None if that is not known: then no device memory is asked for.

    Raises: LayoutError if the layout does not work on so many.
    """
    device_memory = 0
    if world_size is not None:
        device_memory = estimate_memory(recipe, resolve_layout(recipe.layout, world_size)).total
    return Needs(disk=_CHECKPOINTS * checkpoint_bytes(recipe), device_memory=device_memory)


def checkpoint_bytes(recipe: Recipe) -> int:
    """Bytes of a checkpoint: every parameter and what its optimizer keeps of it, in the precision of the update."""
    parameters = sum(math.prod(shape) for shape in parameter_shapes(recipe.model).values())
    return parameters * MASTER_BYTES[recipe.training.precision] * (1 + len(slot_names(recipe.optimizer)))


def data_findings(recipe: Recipe) -> list[Finding]:
    """Whether tokenizer and token shards can be read here; opens them all, and reads no tokens."""
    try:
        tokenizer = load_tokenizer(recipe.data.tokenizer)
    except UserError as error:
        return [Finding(Level.ERROR, "tokenizer", str(error))]
    try:
        data = RecipeData(recipe)
    except UserError as error:
        return [Finding(Level.ERROR, "data", str(error))]
    shards = sum(len(found.manifest.shards) for found in (*data.train.values(), *data.validation.values()))
    return [Finding(Level.OK, "data", f"{shards:,} shards, and a tokenizer of {tokenizer.vocab_size:,} ids")]
