"""Which form of an operation computes it: the one asked for, else the measured winner on the device, else torch's."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptm_dist.errors import RecipeError
from ptm_dist.optim.apex import fused_apex

_MEASURED = Path(__file__).with_name("measured.json")


class Operation(StrEnum):
    """What has more than one form."""

    LINEAR_CROSS_ENTROPY = "linear_cross_entropy"
    """Head and loss: of all logits, or of some tokens at a time."""
    CROSS_ENTROPY = "cross_entropy"
    """Loss, gradient and hits of a block of logits, in place of them."""
    ADD_NORM = "add_norm"
    """Dropout of a branch, its addition to the residual stream, LayerNorm of the sum."""
    BIAS_GELU = "bias_gelu"
    """Addition of a bias and GELU."""
    EMBEDDING = "embedding"
    """Sum of token, position and segment embeddings, its LayerNorm and dropout."""
    OPTIMIZER = "optimizer"
    """The update of weights."""
    ATTENTION = "attention"
    """Attention whose probabilities have dropout."""


class Form(StrEnum):
    """How it is computed."""

    REFERENCE = "reference"
    """torch's own operations one after the other, the form that all others are tested against."""
    TRITON = "triton"
    """A kernel of ptm_dist/kernels/triton."""
    COMPILE = "compile"
    """torch.compile of the reference."""
    WHOLE = "whole"
    """All logits are stored."""
    CHUNKED = "chunked"
    """The logits of some tokens are there at a time."""
    LIGER = "liger"
    """The package liger-kernel."""
    APEX = "apex"
    """NVIDIA's apex."""


@dataclass(frozen=True)
class Choice:
    """The forms of a run.

    Attributes:
        asked: form by operation, where the recipe names one.
    """

    asked: Mapping[Operation, Form] = field(default_factory=dict)

    @classmethod
    def of(cls, section: Mapping[str, str], device: torch.device) -> Choice:
        """What the recipe's section `kernels` asks for; `auto` asks for nothing, keys of other things are skipped.

        Raises: RecipeError if the device cannot do what is asked for, or a package is missing.
        """
        operations = {operation.value for operation in Operation}
        asked = {key: form for key, form in section.items() if key in operations and form != "auto"}
        for key, form in asked.items():
            if (missing := _missing(Form(form), device)) is not None:
                raise RecipeError(f"kernels.{key}={form} needs {missing}; or use kernels.{key}=auto")
        return cls({Operation(key): Form(form) for key, form in asked.items()})

    def form(self, operation: Operation, like: Tensor, *, drops: bool = False) -> Form:
        """The form that computes an operation on tensors of this device, type and width (the last dimension).

        Args:
            operation: to compute.
            like: a tensor that it works on.
            drops: whether it drops elements out; without a kernel that takes dozens of passes over memory on CUDA,
                so there the kernel needs no measurement.
        """
        if operation in self.asked:
            return self.asked[operation]
        if torch.compiler.is_compiling():
            return Form.REFERENCE  # the compiler fuses it with what stands around it
        device = device_name(like.device)
        found = _measured_form(device, operation, like.dtype, like.shape[-1])
        if found is None and drops and like.is_cuda and has_triton():
            return Form.TRITON
        return found or Form.REFERENCE


def _missing(form: Form, device: torch.device) -> str | None:
    """What a form lacks here."""
    if form is Form.TRITON and not has_triton():
        return "triton: pip install 'ptm-dist[triton]'"
    if form is Form.TRITON and device.type != "cuda" and not _interprets():
        return f"a CUDA device, and this process computes on {device.type}"
    if form is Form.APEX and fused_apex() is None:
        return "NVIDIA's build of apex with its CUDA extensions"
    return None


def _interprets() -> bool:
    """Whether kernels run in Triton's interpreter, as in tests: on any device, slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def has_triton() -> bool:
    """Whether triton can be imported."""
    return importlib.util.find_spec("triton") is not None


@cache
def device_name(device: torch.device) -> str:
    """`cpu`, or what the driver calls the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def _measured_form(device: str, operation: Operation, dtype: torch.dtype, width: int) -> Form | None:
    """The fastest form of the measurement with the nearest width."""
    wanted = (device, operation.value, str(dtype).removeprefix("torch."))
    rows = [row for row in measurements() if (row["device"], row["operation"], row["dtype"]) == wanted]
    if not rows:
        return None
    nearest = min(rows, key=lambda row: abs(math.log(row["width"] / width)))
    return Form(min(nearest["seconds"], key=nearest["seconds"].__getitem__))


@cache
def measurements() -> tuple[Mapping[str, Any], ...]:
    """Rows of measured.json, which the benchmarks write.

    Each has device, operation, dtype, width, rows of the tensor, seconds by form, versions and date.
    """
    return tuple(json.loads(_MEASURED.read_text())) if _MEASURED.exists() else ()
