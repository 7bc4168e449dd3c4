"""How fast a process computes right now: the time of a small computation that is the same everywhere."""

from __future__ import annotations

import time

import torch

_SIZES = {"cpu": (256, 12, torch.float32), "cuda": (2048, 100, torch.float16)}
"""Rows of square matrices, how often they are multiplied, in which numbers: 0.4 and 1700 GFLOP, some milliseconds."""


class Pulse:
    """Matrix products without any communication, by the threads or on the device that the steps use.

    Args:
        device: of this process.
    """

    def __init__(self, device: torch.device) -> None:
        size, self._repeats, dtype = _SIZES[device.type]
        self._device = device
        self._factor = torch.full((size, size), 1.0 / size, dtype=dtype, device=device)
        self._product = torch.empty_like(self._factor)
        self.seconds()  # the first products of a process load and choose kernels

    @torch.no_grad()
    def seconds(self) -> float:
        """Compute, and say how long it took, on the clock of the device."""
        if self._device.type == "cpu":
            begin = time.perf_counter()
            self._multiply()
            return time.perf_counter() - begin
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        self._multiply()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def _multiply(self) -> None:
        for _ in range(self._repeats):
            torch.mm(self._factor, self._factor, out=self._product)
