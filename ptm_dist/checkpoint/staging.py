"""Memory of the host where a rank's state is copied to, and from where another process brings it elsewhere."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

_ALIGNMENT = 64


class HostBuffer:
    """Memory that a process started with its descriptor sees as well.

    It takes memory when it is written to, or reserved (:class:`ptm_dist.keeper.messages.Reserve`).

    Args:
        size: in bytes.
        device: from which it is filled; from a CUDA device that goes fastest into memory that is locked.
        path: of a new file on a memory disk, which outlives its users; left out, it has no name and dies with them.
    """

    def __init__(self, size: int, device: torch.device, path: Path | None = None) -> None:
        self.size = size
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.descriptor = os.memfd_create("ptm-checkpoint") if path is None else os.open(path, flags, 0o600)
        self._device = device
        self._memory: Tensor | None = None
        os.ftruncate(self.descriptor, size)

    def fill(self, values: Iterable[tuple[int, Tensor]]) -> None:
        """Copy tensors to the bytes where they are to begin; on return they are there."""
        memory = self._mapped()
        for begin, tensor in values:
            target = memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            target.copy_(tensor.detach(), non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        """Let go of the memory."""
        if self._memory is not None and self._device.type == "cuda":
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
        self._memory = None
        os.close(self.descriptor)

    def _mapped(self) -> Tensor:
        """All of it; mapped late, when its memory was reserved."""
        if self._memory is None:
            self._memory = torch.frombuffer(mmap.mmap(self.descriptor, self.size), dtype=torch.uint8)
            if self._device.type == "cuda":
                torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), self.size, 0)
        return self._memory


def places_of(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where values of these sizes begin one after the other, each aligned, and how many bytes all take."""
    begins, end = [], 0
    for size in sizes:
        begins.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return begins, end
