"""The way of tensors from a device to host memory and back, beside the computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Lane(Protocol):
    """Carries tensors, in the order in which they are given.

    Attributes:
        smallest: bytes below which a tensor is not worth the journey.
    """

    smallest: int

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Any], Any]:
        """Begin to copy what the device has computed so far, which must stay as it is until :meth:`wait`.

        Returns: what :meth:`to_device` takes for each, and a mark behind the copies.
        """

    def to_device(self, stored: Sequence[Any]) -> tuple[list[Tensor], Any]:
        """Begin to copy back; gives tensors that are full after :meth:`wait`, and a mark behind the copies."""

    def wait(self, mark: Any) -> None:
        """Let what the device computes from here on come after the copies before a mark."""


class SameMemory:
    """Where device and host have one memory: everything stays in its place, to the bit and to the byte."""

    smallest = 0

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], None]:
        """The tensors themselves."""
        return list(tensors), None

    def to_device(self, stored: Sequence[Tensor]) -> tuple[list[Tensor], None]:
        """The tensors themselves."""
        return list(stored), None

    def wait(self, mark: None) -> None:
        """Nothing is under way."""


class CudaLane:
    """Copies on a stream of its own, from and to page-locked memory.

    Tensors are made on the stream that computes, so that their memory is free for it again as soon as it has waited
    for the copies. torch keeps page-locked memory for the next step, and does not give it to another copy before this
    one is done.

    Args:
        device: of this process.
        smallest: copies of less than a megabyte take longer to start than to run.
    """

    def __init__(self, device: torch.device, smallest: int = 1 << 20) -> None:
        self.smallest = smallest
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.Event]:
        """Page-locked copies under way."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            stored = [torch.empty_like(each, device="cpu", pin_memory=True) for each in tensors]
            for host, tensor in zip(stored, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            return stored, self._stream.record_event()

    def to_device(self, stored: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.Event]:
        """Tensors on the device that fill."""
        tensors = [torch.empty_like(host, device=self._device) for host in stored]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # their memory may still be read there
        with torch.cuda.stream(self._stream):
            for host, tensor in zip(stored, tensors, strict=True):
                tensor.copy_(host, non_blocking=True)
            return tensors, self._stream.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        """Let the current stream wait."""
        torch.cuda.current_stream(self._device).wait_event(mark)


def lane_of(device: torch.device) -> Lane:
    """The lane between a device and the host."""
    return CudaLane(device) if device.type == "cuda" else SameMemory()
