"""Memory of the host where a rank's state is copied to, and from where another process brings it elsewhere."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64
_PIECE = 32 << 20
_MOST_THREADS = 8


class HostBuffer:
    """Memory that a process started with its descriptor sees as well; it takes none before :meth:`reserve`.

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
        self._reserving: Thread | None = None
        self._failure: OSError | None = None
        os.ftruncate(self.descriptor, size)

    def reserve(self) -> None:
        """Begin to take all of the memory, in a thread: the first copy would else wait for every page of it."""
        if self._reserving is None:
            self._reserving = Thread(target=self._reserve, daemon=True)
            self._reserving.start()

    def fill(self, values: Iterable[tuple[int, Tensor]]) -> None:
        """Copy tensors to the bytes where they are to begin; on return they are there.

        Raises: OSError if there is not so much memory.
        """
        memory = self._reserved()
        pairs = [(memory[begin : begin + tensor.nbytes], tensor.detach()) for begin, tensor in values]
        if self._device.type == "cpu":
            _copy_on_host(pairs)
            return
        for target, tensor in pairs:
            target.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        """Let go of the memory."""
        if self._reserving is not None:
            self._reserving.join()
        if self._memory is not None and self._device.type == "cuda":
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
        self._memory = None
        os.close(self.descriptor)

    def _reserved(self) -> Tensor:
        self.reserve()
        assert self._reserving is not None
        self._reserving.join()
        if self._failure is not None:
            raise self._failure
        assert self._memory is not None
        return self._memory

    def _reserve(self) -> None:
        try:
            # So that no page is missing later, which would end the process.
            os.posix_fallocate(self.descriptor, 0, self.size)
        except OSError as error:
            self._failure = error
            return
        memory = torch.frombuffer(mmap.mmap(self.descriptor, self.size), dtype=torch.uint8)
        memory[:: mmap.PAGESIZE].zero_()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), self.size, 0)
        self._memory = memory


def _copy_on_host(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy tensors to bytes, in threads that do not wait for each other.

    Those of torch do, after every tensor: where processors have other work that takes four times as long.
    """

    def copy(piece: tuple[Tensor, Tensor]) -> None:
        np.copyto(piece[0].numpy(), piece[1].numpy())

    with ThreadPoolExecutor(min(torch.get_num_threads(), _MOST_THREADS)) as threads:
        list(threads.map(copy, _pieces(pairs)))


def _pieces(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same in parts of equal size, both sides as bytes."""
    for target, tensor in pairs:
        content = tensor.contiguous().reshape(-1).view(torch.uint8)
        yield from zip(target.split(_PIECE), content.split(_PIECE), strict=True)


def places_of(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where values of these sizes begin one after the other, each aligned, and how many bytes all take."""
    begins, end = [], 0
    for size in sizes:
        begins.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return begins, end
