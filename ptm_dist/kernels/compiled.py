"""A plain form of an operation, fused by torch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@cache
def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """torch.compile of the function, once for a process: the compiler keeps what it made for each kind of argument."""
    return torch.compile(function)
