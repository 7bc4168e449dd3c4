"""Engines compute steps; the trainer knows the protocol in engine.py and nothing else of them.

native.py does every layout with PyTorch alone.
"""

from __future__ import annotations

import torch

from ptm_dist.engines.engine import Engine
from ptm_dist.engines.native import NativeEngine
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Recipe


def build_engine(recipe: Recipe, layout: ResolvedLayout, device: torch.device) -> Engine:
    """The engine that the recipe names, with initial weights; collective over the default process group."""
    return NativeEngine(recipe, layout, device)
