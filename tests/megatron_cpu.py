"""Megatron-Core on a machine without CUDA, for tests alone: what it asks CUDA for is answered by the CPU.

Megatron-Core 0.16.1 names the device "cuda" in its own code. Inside :func:`cuda_is_cpu` tensors that are asked for
there are made on the CPU; streams and their synchronisation are nothing. What this cannot test: kernels of CUDA,
Transformer Engine, overlap in time, NCCL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # its fusions are torch.compile, which wants a compiler

import torch
from torch.overrides import TorchFunctionMode


class _CudaToCpu(TorchFunctionMode):
    """Redirects every torch function that names CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)  # its optimizers compare names of types
        if "device" in kwargs and kwargs["device"] is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@contextmanager
def cuda_is_cpu() -> Iterator[None]:
    """Answer for CUDA inside the block; of this thread."""
    assert not torch.cuda.is_available(), "for machines without CUDA"
    import megatron.core.tensor_parallel.random as generators

    def state(*others: Any, **more: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(value: torch.Tensor, *others: Any, **more: Any) -> None:
        torch.set_rng_state(value)

    with (
        mock.patch.object(torch.cuda, "current_device", lambda: torch.device("cpu")),
        mock.patch.object(torch.cuda, "synchronize", lambda *others, **more: None),
        mock.patch.object(torch.cuda, "manual_seed", torch.manual_seed),
        mock.patch.object(torch.cuda, "get_rng_state", state),
        mock.patch.object(generators, "_get_cuda_rng_state", state),
        mock.patch.object(generators, "_set_cuda_rng_state", set_state),
        _CudaToCpu(),
    ):
        yield
