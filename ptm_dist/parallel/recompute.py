"""Activation checkpointing and compilation, block by block, without a wrapper that would change names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ptm_dist.models.attention import Mixer
from ptm_dist.models.draws import LayerDraws
from ptm_dist.models.model import LanguageModel
from ptm_dist.models.transformer import Block
from ptm_dist.recipe.schema import Recompute

_Forward = Callable[..., Tensor]

# Batched products are not among them: where attention has no kernel of its own they give its scores, the one thing
# that grows with the square of the length.
_KEPT = {
    "aten": (
        "mm",
        "addmm",
        "linear",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "_flash_attention_forward",
        "_efficient_attention_forward",
    ),
    "ptm_dist": ("dropped_attention",),
}


def apply_recompute(model: LanguageModel, kind: Recompute, every: int = 1) -> None:
    """Let layers store less and run again, in whole or in part, in the backward pass.

    Args:
        model: or a part of one; tensor parallelism is applied already, compilation is not.
        kind: FULL stores the input of a layer alone (Chen et al. 2016, arXiv 1604.06174). SELECTIVE also stores what
            is dear to compute, which is what matrices and attention kernels give, and runs norms, activations,
            additions and communication again (compare Korthikanti et al. 2022, arXiv 2205.05198).
        every: layers 0, n, 2n, ... of the whole model do so, the others store everything.
    """
    if kind is Recompute.NONE:
        return
    for group, block in zip(map(int, model.layers), model.blocks(), strict=True):
        layers = [n for n in range(model.part.first, model.part.end) if model.spec.group_of(n) == group]
        _recompute(block, kind, [layer % every == 0 for layer in layers])


def compile_blocks(model: LanguageModel) -> None:
    """Compile every block by itself: one compilation serves all of them."""
    for block in model.blocks():
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]


def _recompute(block: Block, kind: Recompute, chosen: list[bool]) -> None:
    """`chosen` says of each layer that the block serves whether it recomputes."""
    plain: _Forward = block.forward
    again: _Forward = partial(checkpoint, plain, use_reentrant=False, preserve_rng_state=False)
    if kind is Recompute.SELECTIVE:
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    if all(chosen):
        block.forward = again  # type: ignore[method-assign]
    elif any(chosen):
        block.forward = _InTurn([again if choice else plain for choice in chosen])  # type: ignore[method-assign]


class _InTurn:
    """The forward function of a block that several layers share, one after the other: another one for each layer."""

    def __init__(self, forwards: list[_Forward]) -> None:
        self._forwards = forwards
        self._turn = 0

    def __call__(self, hidden: Tensor, mixer: Mixer, visible: Any, draws: LayerDraws | None = None) -> Tensor:
        forward = self._forwards[self._turn]
        self._turn = (self._turn + 1) % len(self._forwards)
        return forward(hidden, mixer, visible, draws)


@cache
def _kept() -> frozenset[Any]:
    """The operations that this version of torch has, in all their forms."""
    packets = [
        getattr(getattr(torch.ops, library), name)
        for library, names in _KEPT.items()
        for name in names
        if hasattr(getattr(torch.ops, library), name)
    ]
    return frozenset(getattr(packet, form) for packet in packets for form in packet.overloads())


def _policy(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _kept() else CheckpointPolicy.PREFER_RECOMPUTE
