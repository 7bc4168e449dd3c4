"""L2 norms of whole parameters, one by one, from the boxes that ranks hold; always in two small reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

import torch
from torch import Tensor

from ptm_dist.kernels.choice import Choice, Form
from ptm_dist.kernels.wide import wide_dtype
from ptm_dist.optim.apex import fused_apex
from ptm_dist.optim.forms import update_form
from ptm_dist.parallel.mesh import RankGroup, RankMesh
from ptm_dist.parallel.shards import LocalShard

_FUSED = "attention.qkv.weight"
_ROLES = 3


class WholeNorms:
    """Norms over whole parameters, and values per norm spread back over this rank's boxes.

    Each parameter has one norm; the fused weight of query, key and value has three, since papers count them as
    three matrices. Its rows are ordered ``[head, role, head_size]``, so the role of a row follows from its
    global index wherever the weight is cut.

    Args:
        boxes: this rank's part of the parameters to measure, at least one, empty parts included; the same names
            in the same order on every rank.
        owners: whether a parameter is split between tensor-parallel ranks, and between ZeRO shards.
        mesh: the ranks.
        head_size: width of an attention head.
        choice: the forms of the run; by default nothing is asked for.
    """

    def __init__(
        self,
        boxes: Mapping[str, LocalShard],
        owners: Callable[[str], tuple[bool, bool]],
        mesh: RankMesh,
        head_size: int,
        choice: Choice | None = None,
    ) -> None:
        self._mesh = mesh
        self._choice = choice or Choice()
        self._roles = {name: _roles(box, head_size) for name, box in boxes.items() if name.endswith(_FUSED)}
        self._counts = {name: _ROLES if name in self._roles else 1 for name in boxes}
        counted = [owners(name) for name, count in self._counts.items() for _ in range(count)]
        device = next(iter(boxes.values())).local.device
        self._in_tensor_group = _contribution(mesh.tensor, [tensor for tensor, _ in counted], device)
        self._in_shard_group = _contribution(mesh.shard, [shard for _, shard in counted], device)

    @property
    def measured_by_row(self) -> Set[str]:
        """Names of the boxes whose rows belong to more than one norm."""
        return self._roles.keys()

    def of(self, *families: Mapping[str, Tensor], known: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Norms of tensors that are cut as the boxes are.

        Args:
            families: each a tensor of every box's shape by parameter name; all of one dtype.
            known: sums of squares that need no measurement, by parameter name, ``[families, 1]``, or
                ``[families, rows]`` of those that are :attr:`measured_by_row`.

        Returns: per family the norms in the order of the boxes, ``[norms]``, float64 for float64 tensors, else
            float32; the same bits on every rank of the tensor and shard groups.
        """
        squares = torch.stack(
            [self._local_squares(family, index, known or {}) for index, family in enumerate(families)]
        )
        squares.mul_(self._in_tensor_group)
        self._mesh.tensor.sum(squares)
        squares.mul_(self._in_shard_group)
        self._mesh.shard.sum(squares)
        return squares.sqrt_().unbind()

    def spread(self, values: Tensor) -> dict[str, Tensor]:
        """A value per norm, ``[norms]``, as factors that broadcast to each box: ``[1]``, or ``[rows, 1]``."""
        parts = zip(self._counts, values.split(list(self._counts.values())), strict=True)
        return {name: _by_row(self._roles[name], part) if name in self._roles else part for name, part in parts}

    def _local_squares(self, tensors: Mapping[str, Tensor], family: int, known: Mapping[str, Tensor]) -> Tensor:
        dtype = wide_dtype(tensors[next(iter(self._counts))].dtype)
        squares = {name: sums[family] for name, sums in known.items() if name in self._counts}
        unknown = [name for name in self._counts if name not in squares and tensors[name].numel()]
        single = [name for name in unknown if name not in self._roles]
        norms = self._measured([tensors[name] for name in single], dtype)
        squares |= {name: norm.square().reshape(1) for name, norm in zip(single, norms, strict=True)}
        nothing = torch.zeros(1, dtype=dtype, device=self._in_tensor_group.device)
        for name, roles in self._roles.items():
            rows = squares.get(name)
            if rows is None:
                rows = torch.linalg.vector_norm(tensors[name], dim=1, dtype=dtype).square()
            squares[name] = torch.where(roles, rows.unsqueeze(1), 0.0).sum(0)
        return torch.cat([squares.get(name, nothing) for name in self._counts])

    def _measured(self, tensors: list[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
        if not tensors:
            return ()
        apex = fused_apex() if update_form(self._choice, tensors) is Form.APEX else None
        return torch._foreach_norm(tensors, dtype=dtype) if apex is None else apex.norms(tensors).unbind()


def _roles(box: LocalShard, head_size: int) -> Tensor:
    """Which of query, key and value each row of the box belongs to, ``[rows, 3]``, bool."""
    rows = torch.arange(box.offset[0], box.offset[0] + box.local.shape[0], device=box.local.device)
    return (rows // head_size % _ROLES).unsqueeze(1) == torch.arange(_ROLES, device=box.local.device)


def _by_row(roles: Tensor, values: Tensor) -> Tensor:
    return torch.where(roles, values, 0.0).sum(1, keepdim=True)


def _contribution(group: RankGroup, split: list[bool], device: torch.device) -> Tensor:
    """1 for what this rank adds to the sum over a group; of a box that all hold, the first rank's counts."""
    return torch.tensor([float(is_split or group.rank == 0) for is_split in split], device=device)
