"""What blocks store for the backward pass lies in host memory until then (compare Rhu et al. 2016, arXiv 1602.08124).

A block's tensors leave when its forward pass has ended, while the next block computes, and are gone from the device at
the end of that one. In the backward pass a block's tensors are called back when the block behind it begins. So the
device holds those of two blocks at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ptm_dist.models.model import LanguageModel
from ptm_dist.models.transformer import Block
from ptm_dist.parallel.host_lane import Lane, lane_of


def offload_activations(model: LanguageModel, lane_of: Callable[[torch.device], Lane] = lane_of) -> None:
    """Let the blocks' stored tensors wait for the backward pass in host memory.

    Parameters stay, and what a block that recomputes stores by another way than autograd: with full recomputation its
    input leaves, with the selective one too, and what that keeps of products stays. Nothing happens without gradients.

    Args:
        model: or a part of one, with recomputation and compilation applied.
        lane_of: the way from and to the device of the hidden states.
    """
    crossing = _Crossing(model.part.end - model.part.first, lane_of)
    for block in model.blocks():
        block.forward = partial(crossing.run, block, block.forward)  # type: ignore[method-assign]


class _Crossing:
    """Runs blocks one after the other, and hands over what each of them stores."""

    def __init__(self, layers: int, lane_of: Callable[[torch.device], Lane]) -> None:
        self._layers = layers
        self._lane_of = lane_of
        self._lane: Lane | None = None
        self._turn = 0
        self._last: Callable[[], _Cargo | None] = _nobody

    def run(self, block: Block, forward: Callable[..., Tensor], hidden: Tensor, *others: Any) -> Tensor:
        """The block's forward pass."""
        if not torch.is_grad_enabled():
            return forward(hidden, *others)
        if self._lane is None:
            self._lane = self._lane_of(hidden.device)
        # A backward pass ends with the first layer: the one before it in time belongs to another micro-batch.
        cargo = _Cargo(self._lane, block, self._last if self._turn else _nobody)
        with saved_tensors_hooks(cargo.pack, cargo.unpack):
            out = forward(hidden, *others)
        cargo.depart()
        if (before := self._last()) is not None:
            before.let_go()
        self._turn = (self._turn + 1) % self._layers
        # Autograd's graph alone keeps it, so that a backward pass leaves nothing behind.
        self._last = ref(cargo)
        return out


class _Parcel:
    """The memory that one or several stored tensors look at."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        self.device: Tensor | None = tensor.detach().as_strided((size,), (1,), 0)
        self.host: Any = None


class _Piece(NamedTuple):
    """A stored tensor."""

    parcel: _Parcel
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt

    def tensor(self) -> Tensor:
        assert self.parcel.device is not None, "its memory has not come back"
        return self.parcel.device.as_strided(self.size, self.stride, self.offset)


class _Cargo:
    """What one forward pass of a block stores.

    Args:
        lane: of its device.
        block: whose parameters stay; they are whole while it runs, whatever shards them.
        before: of the layer before in the same forward pass, if it is still of use.
    """

    def __init__(self, lane: Lane, block: Block, before: Callable[[], _Cargo | None]) -> None:
        self._lane = lane
        self._staying = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
        self._before = before
        self._parcels: dict[tuple[int, torch.dtype], _Parcel] = {}
        self._departure: Any = None
        self._arrival: Any = None
        self._is_needed = False

    def pack(self, tensor: Tensor) -> Tensor | _Piece:
        """What autograd keeps instead of a tensor."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._staying or storage.nbytes() < self._lane.smallest:
            return tensor.detach()
        # Memory is not used again before this object lets go of it: an address means one tensor and its views.
        key = storage._cdata, tensor.dtype
        if key not in self._parcels:
            self._parcels[key] = _Parcel(tensor)
        return _Piece(self._parcels[key], tensor.size(), tensor.stride(), tensor.storage_offset())

    def unpack(self, packed: Tensor | _Piece) -> Tensor:
        """The tensor, more than once where a backward pass comes in halves."""
        if isinstance(packed, Tensor):
            return packed
        if not self._is_needed:
            self._is_needed = True
            self.call_back()
            if self._arrival is not None:
                self._lane.wait(self._arrival)
            if (before := self._before()) is not None:
                before.call_back()
        return packed.tensor()

    def depart(self) -> None:
        """The forward pass has ended."""
        parcels = list(self._parcels.values())
        stored, self._departure = self._lane.to_host([_present(parcel) for parcel in parcels])
        for parcel, host in zip(parcels, stored, strict=True):
            parcel.host = host

    def let_go(self) -> None:
        """Give up the memory of the device, unless the backward pass was faster."""
        if self._parcels:
            self._lane.wait(self._departure)
        for parcel in self._parcels.values():
            parcel.device = None

    def call_back(self) -> None:
        """Begin to bring back what has left; from here on the stored tensors alone keep the memory."""
        away = [parcel for parcel in self._parcels.values() if parcel.device is None]
        self._parcels.clear()
        if away:
            tensors, self._arrival = self._lane.to_device([parcel.host for parcel in away])
            for parcel, tensor in zip(away, tensors, strict=True):
                parcel.device, parcel.host = tensor, None


def _present(parcel: _Parcel) -> Tensor:
    assert parcel.device is not None
    return parcel.device


def _nobody() -> None:
    return None
