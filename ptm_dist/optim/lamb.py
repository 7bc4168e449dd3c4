"""LAMB on the shards a rank holds (You et al. 2019, arXiv 1904.00962)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

from ptm_dist.kernels.choice import Choice, Form
from ptm_dist.kernels.moments import moment_numbers
from ptm_dist.optim.decay import decay_groups, is_decayed
from ptm_dist.optim.forms import update_form
from ptm_dist.optim.optimizer import divided_before, is_infinite, zero_slot
from ptm_dist.optim.whole_norms import WholeNorms
from ptm_dist.parallel.mesh import RankMesh
from ptm_dist.parallel.shards import LocalShard

_CACHED = 1 << 18
"""Elements that are updated at a time on the host: with moments and all, some MiB of its last cache."""
_PORTION = 1 << 25
"""The same on other devices, where the copy of gradients shall only be small beside the state."""


class Lamb:
    """Moments m and v by parameter name, and the update whose length follows the length of each weight.

    With learning rate a, weight decay d and gradient g, each step t = 1, 2, ... does

    - ``m = b1 m + (1 - b1) g`` and ``v = b2 v + (1 - b2) g^2``;
    - ``u = m' / (sqrt(v') + eps) + d w``, with m' and v' as in :class:`ptm_dist.optim.adamw.AdamW`;
    - ``w -= a r u`` with ``r = |w| / |u|`` where both are above 0, else 1.

    Norms are of whole parameters, at any layout; query, key and value of the fused weight have their own. As in
    the published code (google-research/albert, lamb_optimizer.py, which has no bias correction), parameters
    without weight decay have d = 0 and r = 1. The update takes the gradients' memory and little more.

    Args:
        boxes: gives this rank's part of every parameter by canonical name. Called at each step: storage may move.
        owners: whether a parameter is split between tensor-parallel ranks, and between ZeRO shards.
        mesh: the ranks.
        head_size: width of an attention head.
        betas: decay rates b1 and b2 of the two moments, below 1.
        eps: added to the root of the second moment.
        weight_decay: see :func:`ptm_dist.optim.decay.is_decayed`.
        bias_correction: divide the moments by what their start at zero leaves out.
        choice: the forms of the run; by default nothing is asked for.
    """

    def __init__(
        self,
        boxes: Callable[[], Mapping[str, LocalShard]],
        owners: Callable[[str], tuple[bool, bool]],
        mesh: RankMesh,
        head_size: int,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        bias_correction: bool,
        choice: Choice | None = None,
    ) -> None:
        self._boxes = boxes
        self._choice = choice or Choice()
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.bias_correction = bias_correction
        self.steps_done = 0
        first = boxes()
        self._exp_avg = zero_slot({name: box.local for name, box in first.items()})
        self._exp_avg_sq = zero_slot({name: box.local for name, box in first.items()})
        decayed = {name: box for name, box in first.items() if is_decayed(name)}
        self._norms = WholeNorms(decayed, owners, mesh, head_size, choice)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float, divisor: Tensor | None = None) -> None:
        """Update every shard in place and use up the gradients; all ranks take part."""
        self.steps_done += 1
        weights = {name: box.local for name, box in self._boxes().items()}
        groups = decay_groups(weights, self.weight_decay)
        squares: dict[str, Tensor] = {}
        forms = [update_form(self._choice, [weights[name] for name in names]) for names, _ in groups]
        for form, (names, weight_decay) in zip(forms, groups, strict=True):
            if form is Form.TRITON:
                squares |= self._by_triton(names, weights, gradients, weight_decay, divisor)
            else:
                self._by_torch(names, weights, gradients, weight_decay, divisor)
        weight_norm, update_norm = self._norms.of(weights, gradients, known=squares)
        ratio = torch.where((weight_norm > 0.0) & (update_norm > 0.0), weight_norm / update_norm, 1.0)
        if divisor is not None:
            ratio = torch.where(divisor.isfinite(), ratio, 0.0)
        factors = self._norms.spread(ratio * -learning_rate)
        for form, (names, _) in zip(forms, groups, strict=True):
            self._apply(form, names, weights, gradients, factors, learning_rate)

    def slots(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The two moments."""
        return {"exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}

    def _by_torch(
        self,
        names: list[str],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        weight_decay: float,
        divisor: Tensor | None,
    ) -> None:
        """Turn gradients into updates, some at a time: what they were is kept besides until then."""
        slots = (weights, gradients, self._exp_avg, self._exp_avg_sq)
        steps = self.steps_done - 1.0 if self.bias_correction else math.inf
        device = weights[names[0]].device
        infinite = is_infinite(divisor)
        for shards, grads, first, second in _portions([[tensors[name] for name in names] for tensors in slots]):
            undivided = [gradient.clone() for gradient in grads]
            # Adam with the learning rate -1 adds its update to what it takes for weights: here, to the decay.
            if weight_decay > 0.0:
                torch._foreach_copy_(grads, shards)
                torch._foreach_mul_(grads, weight_decay)
            else:
                torch._foreach_zero_(grads)
            adam(
                grads,
                undivided,
                first,
                second,
                [],
                list(torch.full((len(grads),), steps, device=device).unbind()),
                fused=True,
                grad_scale=divided_before(undivided, divisor),
                found_inf=infinite,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=-1.0,
                weight_decay=0.0,
                eps=self.eps,
                maximize=False,
            )

    def _by_triton(
        self,
        names: list[str],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        weight_decay: float,
        divisor: Tensor | None,
    ) -> dict[str, Tensor]:
        """The same, and sums of squares of weights and updates as :meth:`WholeNorms.of` takes them."""
        from ptm_dist.kernels.triton.optimizer import lamb_update_

        moments = moment_numbers(self.betas, self.eps, self.steps_done if self.bias_correction else None)
        squares = {}
        for name in names:
            weight, gradient, first, second = (
                tensors[name] for tensors in (weights, gradients, self._exp_avg, self._exp_avg_sq)
            )
            rows = weight.shape[0] if name in self._norms.measured_by_row else 1
            squares[name] = lamb_update_(weight, gradient, first, second, moments, weight_decay, rows, divisor)
        return squares

    def _apply(
        self, form: Form, names: list[str], weights: Mapping[str, Tensor], updates: Mapping[str, Tensor],
        factors: Mapping[str, Tensor], learning_rate: float,
    ) -> None:  # fmt: skip
        shards, changes = [weights[name] for name in names], [updates[name] for name in names]
        if names[0] not in factors:
            torch._foreach_add_(shards, changes, alpha=-learning_rate)
        elif form is Form.TRITON:
            from ptm_dist.kernels.triton.optimizer import lamb_apply_

            for name, shard, change in zip(names, shards, changes, strict=True):
                lamb_apply_(shard, change, factors[name])
        else:
            torch._foreach_addcmul_(shards, changes, [factors[name] for name in names])


def _portions(slots: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Rows of tensors with the same shapes, so many at a time that their copy stays in a cache, or is small."""
    size = _PORTION if slots[0][0].is_cuda else _CACHED
    portion: list[tuple[Tensor, ...]] = []
    held = 0
    for tensors in zip(*slots, strict=True):
        rows = max(1, size // tensors[0][0].numel())
        for parts in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
            if held + parts[0].numel() > size and portion:
                yield [list(slot) for slot in zip(*portion, strict=True)]
                portion, held = [], 0
            portion.append(parts)
            held += parts[0].numel()
    yield [list(slot) for slot in zip(*portion, strict=True)]
