"""Activation checkpointing and compilation, block by block, without a wrapper that would change names."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: nn.Module) -> None:
    """Let every block keep its input only and run again in the backward pass (Chen et al. 2016)."""
    for block in model.layers.values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile every block by itself: one compilation serves all of them."""
    for block in model.layers.values():
        block.forward = torch.compile(block.forward)
