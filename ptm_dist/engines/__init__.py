"""Engines compute steps; the trainer knows the protocol in engine.py and nothing else of them.

native.py does every layout with PyTorch alone, deepspeed.py ZeRO with DeepSpeed, megatron.py what Megatron-Core splits.
"""

from __future__ import annotations

import torch

from ptm_dist.engines.engine import Engine
from ptm_dist.engines.native import NativeEngine
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Recipe


def build_engine(recipe: Recipe, layout: ResolvedLayout, device: torch.device) -> Engine:
    """The engine that the recipe names, with initial weights; collective over the default process group.

    Raises: RecipeError if the engine is not installed.
    """
    if recipe.engine == "deepspeed":
        from ptm_dist.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(recipe, layout, device)
    if recipe.engine == "megatron":
        from ptm_dist.engines.megatron import MegatronEngine

        return MegatronEngine(recipe, layout, device)
    return NativeEngine(recipe, layout, device)
