"""The exact global gradient norm over every mesh, and clipping by it (Pascanu et al. 2013, arXiv 1211.5063).

Gradients are clipped where the update reads them; see :class:`ptm_dist.optim.optimizer.Optimizer`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ptm_dist.kernels.wide import wide_dtype
from ptm_dist.parallel.mesh import RankMesh


def global_norm(
    gradients: Mapping[str, Tensor],
    owners: Callable[[str], tuple[bool, bool]],
    counted: Callable[[str], bool],
    mesh: RankMesh,
) -> Tensor:
    """L2 norm of the whole gradient, the same scalar on every rank, each element counted once.

    Args:
        gradients: this rank's boxes, already summed over ranks that hold the same box.
        owners: whether a parameter is split between tensor-parallel ranks, and between ZeRO shards.
        counted: whether this rank is the one that counts a parameter which several pipeline ranks hold.
        mesh: the ranks.
    """
    sample = next(iter(gradients.values()))
    dtype = wide_dtype(sample.dtype)
    squares = torch.zeros(2, 2, dtype=dtype, device=sample.device)
    by_split: dict[tuple[bool, bool], list[Tensor]] = defaultdict(list)
    for name, gradient in gradients.items():
        if gradient.numel() and counted(name):
            by_split[owners(name)].append(gradient)
    for (between_tensor_ranks, between_zero_ranks), boxes in by_split.items():
        norms = torch.stack(torch._foreach_norm(boxes, dtype=dtype))
        squares[int(between_tensor_ranks), int(between_zero_ranks)] = norms.square().sum()
    between_tensor, between_shards = squares[1], squares[:, 1]
    mesh.tensor.sum(between_tensor)
    between_shards.copy_(mesh.shard.sum(between_shards.contiguous()))
    return mesh.pipeline.sum(squares.sum()).sqrt()


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor | None:
    """What gradients are divided by so that their norm is at most `max_norm`.

    Args:
        norm: of the whole gradient, a scalar.
        max_norm: 0 never clips.

    Returns: a scalar of the norm's type and device, at least 1, and no finite number where the norm is none; None where
        nothing is ever clipped. The host does not wait for it.
    """
    return torch.clamp((norm + 1e-6) / max_norm, min=1.0) if max_norm > 0.0 else None
