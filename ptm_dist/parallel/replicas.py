"""Data parallelism in which every rank holds the whole state: gradients are summed while others are still computed.

Li et al. 2020 (arXiv 2006.15704), section 3.2: the last layers' gradients are ready first, and travel in buckets. A
rank without replicas sums nothing; what is left for it are weights of lower precision beside those that are updated
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).

In a step of one backward pass nobody reads a weight of lower precision after its gradient is there. Such weights then
lie where the gradients will be, and need no memory of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ptm_dist.parallel.mesh import RankGroup

BUCKET_BYTES = 25 * 2**20
"""What travels together at least; as in the paper's section 5.2."""

_ALIGNED = 16
"""Weights of so many elements, or a multiple, come first in a bucket, where kernels read several at a time."""


class Replicas:
    """Holds the weights that are updated, and brings gradients to them.

    Args:
        module: a model or a part of one; without memory until :meth:`materialized`.
        ranks: with the same state, that read other samples or positions.
        compute_dtype: of parameters and activations in the step; None keeps the parameters' own.
        bucket_bytes: of gradients that travel together at least.

    Attributes:
        is_mixed: whether what computes is of another type than what is updated.
        masters: the weights that are updated, by the module's names; they have the summed gradients.
    """

    def __init__(
        self,
        module: nn.Module,
        ranks: RankGroup,
        compute_dtype: torch.dtype | None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._module = module
        self._ranks = ranks
        self._master_dtype = next(module.parameters()).dtype
        self.is_mixed = compute_dtype is not None
        self.masters: dict[str, nn.Parameter] = {}
        self._bucket_bytes = bucket_bytes
        self._buckets: list[_Bucket] = []
        self._sums = False
        self._wants_to_share = self._shares = False
        self._is_behind = False
        self._started = 0
        self._works: list[Any] = []
        if compute_dtype is not None:
            module.to(compute_dtype)

    def materialized(self) -> None:
        """The module has memory now: take hold of its parameters."""
        named = dict(self._module.named_parameters())
        self.masters = dict(named)
        if self.is_mixed:
            for weight in named.values():  # until a forward pass tells where they shall lie
                weight.untyped_storage().resize_(0)
            self.masters = {
                name: nn.Parameter(torch.empty_like(parameter, dtype=self._master_dtype))
                for name, parameter in named.items()
            }
        pairs = [(parameter, self.masters[name]) for name, parameter in reversed(named.items())]
        self._buckets = list(_fill_buckets(pairs, self._bucket_bytes))
        for bucket in self._buckets:
            for place, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(partial(self._take, bucket, place))
        self._module.register_forward_pre_hook(self._refresh)

    def changed(self) -> None:
        """The weights that are updated are others now: the next forward pass brings those in line that compute."""
        self._is_behind = self.is_mixed

    def begin_step(self, passes: int) -> None:
        """Say before the first forward pass of a step how many backward passes the stage has in it."""
        self._wants_to_share = self.is_mixed and passes == 1
        self._is_behind |= self._wants_to_share is not self._shares

    def begin_backward(self, *, last: bool) -> None:
        """Say before a backward pass whether it is the last one of the step: gradients are summed in that one."""
        self._sums = last and self._ranks.size > 1

    def end_backward(self) -> None:
        """Wait for the sums that a backward pass has started."""
        if self._sums:
            self._start(all_of_them=True)
            for work in self._works:
                work.wait()
            self._works.clear()
            self._started, self._sums = 0, False
            for bucket in self._buckets:
                bucket.close()
        self._is_behind |= self._shares

    def hold_weights(self) -> None:
        """Before either half of a backward pass, whose second half leaves gradients without telling."""
        self._sums = False

    def finish_weights(self, *, last: bool) -> None:
        """After its second half, of weights."""
        self.begin_backward(last=last)
        for bucket in self._buckets:
            for place, parameter in enumerate(bucket.parameters):
                if parameter.grad is not None:
                    self._take(bucket, place, parameter)
        self.end_backward()

    def reshard(self) -> None:
        """Nothing is whole that should not be."""

    @torch.no_grad()
    def _take(self, bucket: _Bucket, place: int, parameter: Tensor) -> None:
        """Add a gradient that is complete in this backward pass to its sum, and start what can be summed over ranks."""
        if self._ranks.size > 1 or self._shares:
            bucket.add(place, parameter)
        elif self.is_mixed:
            _add_alone(bucket.masters[place], parameter)
        if self._sums:
            bucket.ready += 1
            self._start()

    @torch.no_grad()
    def _refresh(self, module: nn.Module, arguments: object) -> None:
        """Before a forward pass: bring the weights that compute in line with those that are updated."""
        if not self._is_behind:
            return
        # Gradients that nobody has used yet are not written over.
        self._shares = self._wants_to_share and all(master.grad is None for master in self.masters.values())
        for bucket in self._buckets:
            bucket.lodge(shares=self._shares)
            torch._foreach_copy_(bucket.parameters, bucket.masters)
        self._is_behind = self._shares is not self._wants_to_share

    def _start(self, *, all_of_them: bool = False) -> None:
        """Sum buckets over ranks, in their order on every rank; those that are complete, or all."""
        while self._started < len(self._buckets):
            bucket = self._buckets[self._started]
            if bucket.ready < len(bucket.parameters) and not all_of_them:
                return
            self._works.append(dist.all_reduce(bucket.sums(), group=self._ranks.group, async_op=True))
            self._started += 1


class _Bucket:
    """Gradients side by side.

    Args:
        pairs: parameters that are computed with, and those that are updated; the same or of another type.
    """

    def __init__(self, pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
        pairs = sorted(pairs, key=lambda pair: pair[0].numel() % _ALIGNED != 0)
        self.parameters: list[Tensor] = [parameter for parameter, _ in pairs]
        self.masters: list[Tensor] = [master for _, master in pairs]
        self.ready = 0
        self._flat: Tensor | None = None
        self._views: list[Tensor] = []
        self._is_shared: bool | None = None

    def lodge(self, *, shares: bool) -> None:
        """Give the weights that compute their place: in the memory of the gradients, or memory of their own."""
        if shares is self._is_shared:
            return
        self._is_shared = shares
        if shares:
            self._open()
            for parameter, view in zip(self.parameters, self._views, strict=True):
                parameter.data = view.view(-1).view(parameter.dtype)[: parameter.numel()].view_as(parameter)
        else:
            self.close()
            for parameter in self.parameters:
                parameter.data = torch.empty_like(parameter)

    def add(self, place: int, parameter: Tensor) -> None:
        """Take one gradient in; what was added before stays."""
        if self._flat is None:
            self._open()
        view, master = self._views[place], self.masters[place]
        assert parameter.grad is not None
        if parameter is master:
            if parameter.grad.data_ptr() != view.data_ptr():  # else autograd has added to it in place
                view.copy_(parameter.grad)
        else:
            if master.grad is None:
                view.copy_(parameter.grad)
            else:
                torch.add(master.grad, parameter.grad, out=view)
            parameter.grad = None
        master.grad = view

    def sums(self) -> Tensor:
        """All gradients of the bucket, one after the other; 0 where none was added."""
        if self._flat is None:
            self._open()
        assert self._flat is not None
        for view, master in zip(self._views, self.masters, strict=True):
            if master.grad is None:
                view.zero_()
        return self._flat

    def close(self) -> None:
        """Let go of the memory, which gradients keep as long as they are wanted, and weights that share it."""
        self.ready = 0
        if not self._is_shared:
            self._flat, self._views = None, []

    def _open(self) -> None:
        sizes = [master.numel() for master in self.masters]
        self._flat = self.masters[0].new_empty(sum(sizes))
        parts = self._flat.split(sizes)
        self._views = [part.view_as(master) for part, master in zip(parts, self.masters, strict=True)]


def _add_alone(master: Tensor, parameter: Tensor) -> None:
    assert parameter.grad is not None
    if master.grad is None:
        master.grad = parameter.grad.to(master.dtype)
    else:
        master.grad.add_(parameter.grad)
    parameter.grad = None


def _fill_buckets(pairs: list[tuple[nn.Parameter, nn.Parameter]], least: int) -> Iterator[_Bucket]:
    begin = 0
    for count in bucket_counts([master.numel() * master.element_size() for _, master in pairs], least):
        yield _Bucket(pairs[begin : begin + count])
        begin += count


def bucket_counts(sizes: Iterable[int], least: int = BUCKET_BYTES) -> list[int]:
    """How many gradients go into each bucket.

    Args:
        sizes: their bytes, in the order in which they are ready.
        least: bytes at which a bucket is full.
    """
    counts, count, full = [], 0, 0
    for size in sizes:
        count, full = count + 1, full + size
        if full >= least:
            counts.append(count)
            count, full = 0, 0
    return [*counts, count] if count else counts
