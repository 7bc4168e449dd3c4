"""Which parameters are decayed, as in the published GPT, BERT and ALBERT."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def is_decayed(name: str) -> bool:
    """Weight decay applies to matrices and embeddings, not to biases and LayerNorm."""
    return not (name.endswith("bias") or name.endswith("norm.weight"))


def decay_groups(parameters: Mapping[str, Tensor], weight_decay: float) -> list[tuple[list[str], float]]:
    """Names of the parameters that are not empty on this rank, by their weight decay; no group is empty."""
    groups = []
    for decayed, decay in ((True, weight_decay), (False, 0.0)):
        names = [name for name, p in parameters.items() if is_decayed(name) is decayed and p.numel()]
        if names:
            groups.append((names, decay))
    return groups
