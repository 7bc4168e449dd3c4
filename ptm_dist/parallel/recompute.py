"""Activation checkpointing and compilation, block by block, without a wrapper that would change names."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from ptm_dist.models.model import LanguageModel


def recompute_blocks(model: LanguageModel) -> None:
    """Let every block keep its input only and run again in the backward pass (Chen et al. 2016)."""
    for block in model.blocks():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]


def compile_blocks(model: LanguageModel) -> None:
    """Compile every block by itself: one compilation serves all of them."""
    for block in model.blocks():
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
