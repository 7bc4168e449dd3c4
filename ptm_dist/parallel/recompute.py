"""Activation checkpointing and compilation, block by block, without a wrapper that would change names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ptm_dist.models.model import LanguageModel
from ptm_dist.recipe.schema import Recompute

_KEPT = ("mm", "addmm", "bmm", "baddbmm", "linear")
"""Matrix products of aten; attention kernels are told by the start of their names."""


def apply_recompute(model: LanguageModel, kind: Recompute, every: int = 1) -> None:
    """Let layers store less and compute it again in the backward pass; the same numbers come out.

    Args:
        model: or a part of one. Numbers of layers are those of the whole model.
        kind: full: a layer stores its input only (Chen et al. 2016, arXiv 1604.06174). selective: also the results
            of matrix products and attention, so that only cheap operations, and exchanges between ranks, run again
            (Korthikanti et al. 2022, arXiv 2205.05198).
        every: only layers whose number it divides.
    """
    if kind is Recompute.NONE:
        return
    again: Callable[..., Any] = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if kind is Recompute.SELECTIVE:
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, _keep_products))
    chosen: dict[str, list[bool]] = {}
    for layer in range(model.part.first, model.part.end):
        chosen.setdefault(str(model.spec.group_of(layer)), []).append(layer % every == 0)
    for name, layers in chosen.items():
        block: Any = model.layers[name]
        block.forward = _Alternating(block.forward, partial(again, block.forward), layers)


class _Alternating:
    """A block's forward pass, as it is or to be recomputed; each pass through the model uses it the same times."""

    def __init__(self, plain: Callable[..., Any], again: Callable[..., Any], layers: list[bool]) -> None:
        self._turns = cycle([again if recomputed else plain for recomputed in layers])

    def __call__(self, *args: Any) -> Any:
        return next(self._turns)(*args)


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operation.overloadpacket.__name__
    if operation.namespace == "aten" and (name in _KEPT or name.startswith("_scaled_dot_product")):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(model: LanguageModel) -> None:
    """Compile every block by itself: one compilation serves all of them."""
    for block in model.blocks():
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
