"""What two checkpoints have in common, and how far apart their tensors are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ptm_dist.checkpoint.contents import Contents
from ptm_dist.checkpoint.store import CheckpointInfo
from ptm_dist.recipe.fingerprint import differences

_BLOCK = 1 << 20


@dataclass(frozen=True)
class TensorDifference:
    """Two tensors of one name and shape that are not equal to the bit.

    Attributes:
        name: canonical name.
        elements: that differ.
        absolute: largest difference.
        relative: largest difference by the larger of the two values.
    """

    name: str
    elements: int
    absolute: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """What differs between two checkpoints, A and B.

    Attributes:
        recipe: keys that change what is learnt, as `optimizer.learning_rate: 0.001 -> 0.002`.
        progress: steps, samples and shards, where they differ.
        only_in_a: tensors that B lacks.
        only_in_b: tensors that A lacks.
        other_shapes: tensors of another shape or number format.
        tensors: the others that are not equal, in the order of their names.
        equal_tensors: how many are equal to the bit.
    """

    recipe: tuple[str, ...]
    progress: tuple[str, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_shapes: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    equal_tensors: int

    @property
    def is_equal(self) -> bool:
        """Whether a run goes on from either in the same way."""
        found = (self.recipe, self.progress, self.only_in_a, self.only_in_b, self.other_shapes, self.tensors)
        return not any(found)


def compare(first: CheckpointInfo, second: CheckpointInfo) -> Comparison:
    """Compare two checkpoints of whatever layouts; one tensor of each is in memory at a time.

    Raises: CheckpointError if this version does not know a recipe of theirs.
    """
    a, b = Contents(first.path), Contents(second.path)
    common = [name for name in a.tensors if name in b.tensors]
    kinds = {name: [f"{list(c.tensors[name].shape)} {c.tensors[name].dtype}" for c in (a, b)] for name in common}
    comparable = [name for name in common if kinds[name][0] == kinds[name][1]]
    found = [tensor_difference(name, a.read(name), b.read(name)) for name in comparable]
    progress = [(key, getattr(first.manifest, key), getattr(second.manifest, key)) for key in _PROGRESS]
    return Comparison(
        recipe=tuple(differences(first.manifest.parsed_recipe(), second.manifest.parsed_recipe())),
        progress=tuple(f"{key}: {before} -> {after}" for key, before, after in progress if before != after),
        only_in_a=tuple(name for name in a.tensors if name not in b.tensors),
        only_in_b=tuple(name for name in b.tensors if name not in a.tensors),
        other_shapes=tuple(
            f"{name}: {kinds[name][0]} -> {kinds[name][1]}" for name in common if name not in comparable
        ),
        tensors=tuple(difference for difference in found if difference is not None),
        equal_tensors=found.count(None),
    )


_PROGRESS = ("step", "samples", "data_fingerprint", "quarantine")


def tensor_difference(name: str, a: Tensor, b: Tensor) -> TensorDifference | None:
    """How far two tensors of one shape and dtype are apart; None if they are equal to the bit.

    A value that is not a number differs by infinity from all numbers, and not from another one.
    """
    elements, absolute, relative = 0, 0.0, 0.0
    for left, right in zip(a.flatten().split(_BLOCK), b.flatten().split(_BLOCK), strict=True):
        apart = (left != right) & ~(left.isnan() & right.isnan())
        if not apart.any():
            continue
        x, y = left[apart].double(), right[apart].double()
        distance = (x - y).abs().nan_to_num(nan=math.inf, posinf=math.inf)
        ratio = (distance / x.abs().maximum(y.abs())).nan_to_num(nan=math.inf, posinf=math.inf)
        elements += x.numel()
        absolute, relative = max(absolute, distance.max().item()), max(relative, ratio.max().item())
    return TensorDifference(name, elements, absolute, relative) if elements else None
