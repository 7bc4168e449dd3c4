"""Which form of an update computes it: the one asked for, else NVIDIA's apex where it is, else the measured winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ptm_dist.errors import RecipeError
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.optim.apex import apex_for


def update_form(choice: Choice, tensors: Sequence[Tensor]) -> Form:
    """The form that updates tensors on one device, at least one, none of them empty."""
    if Operation.OPTIMIZER not in choice.asked and apex_for(tensors) is not None:
        return Form.APEX
    return choice.form(Operation.OPTIMIZER, tensors[0])


def refuse_misfits(choice: Choice, weights: Mapping[str, Tensor], *, on_host: bool) -> None:
    """Say before the first update that a form which the recipe asks for cannot make it.

    Raises: RecipeError.
    """
    asked = choice.asked.get(Operation.OPTIMIZER, Form.REFERENCE)
    if asked is Form.REFERENCE:
        return
    if on_host:
        raise RecipeError(f"kernels.optimizer={asked} is for CUDA, but layout.offload=optimizer updates on the host")
    if any(weight.dtype != torch.float32 for weight in weights.values()):
        raise RecipeError(f"kernels.optimizer={asked} updates float32 weights only; use kernels.optimizer=reference")
