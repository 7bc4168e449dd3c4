"""LAMB on the shards a rank holds (You et al. 2019, arXiv 1904.00962)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ptm_dist.optim.decay import decay_groups, is_decayed
from ptm_dist.optim.optimizer import zero_slot
from ptm_dist.optim.whole_norms import WholeNorms
from ptm_dist.parallel.mesh import RankMesh
from ptm_dist.parallel.shards import LocalShard


class Lamb:
    """Moments m and v by parameter name, and the update whose length follows the length of each weight.

    With learning rate a, weight decay d and gradient g, each step t = 1, 2, ... does

    - ``m = b1 m + (1 - b1) g`` and ``v = b2 v + (1 - b2) g^2``;
    - ``u = m' / (sqrt(v') + eps) + d w``, with m' and v' as in :class:`ptm_dist.optim.adamw.AdamW`;
    - ``w -= a r u`` with ``r = |w| / |u|`` where both are above 0, else 1.

    Norms are of whole parameters, at any layout; query, key and value of the fused weight have their own. As in
    the published code (google-research/albert, lamb_optimizer.py, which has no bias correction), parameters
    without weight decay have d = 0 and r = 1. The update takes the gradients' memory and needs no more.

    Args:
        boxes: gives this rank's part of every parameter by canonical name. Called at each step: storage may move.
        owners: whether a parameter is split between tensor-parallel ranks, and between ZeRO shards.
        mesh: the ranks.
        head_size: width of an attention head.
        betas: decay rates b1 and b2 of the two moments, below 1.
        eps: added to the root of the second moment.
        weight_decay: see :func:`ptm_dist.optim.decay.is_decayed`.
        bias_correction: divide the moments by what their start at zero leaves out.
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
    ) -> None:
        self._boxes = boxes
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.bias_correction = bias_correction
        self.steps_done = 0
        first = boxes()
        self._exp_avg = zero_slot({name: box.local for name, box in first.items()})
        self._exp_avg_sq = zero_slot({name: box.local for name, box in first.items()})
        decayed = {name: box for name, box in first.items() if is_decayed(name)}
        self._norms = WholeNorms(decayed, owners, mesh, head_size)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """Update every shard in place and use up the gradients; all ranks take part."""
        self.steps_done += 1
        weights = {name: box.local for name, box in self._boxes().items()}
        groups = decay_groups(weights, self.weight_decay)
        for names, weight_decay in groups:
            self._turn_into_updates(names, weights, gradients, weight_decay)
        weight_norm, update_norm = self._norms.of(weights, gradients)
        ratio = torch.where((weight_norm > 0.0) & (update_norm > 0.0), weight_norm / update_norm, 1.0)
        factors = self._norms.spread(ratio)
        for names, _ in groups:
            shards, updates = [weights[name] for name in names], [gradients[name] for name in names]
            if names[0] in factors:
                torch._foreach_mul_(updates, [factors[name] for name in names])
            torch._foreach_add_(shards, updates, alpha=-learning_rate)

    def slots(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The two moments."""
        return {"exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}

    def _turn_into_updates(
        self, names: list[str], weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], weight_decay: float
    ) -> None:
        beta1, beta2 = self.betas
        g = [gradients[name] for name in names]
        m = [self._exp_avg[name] for name in names]
        v = [self._exp_avg_sq[name] for name in names]
        torch._foreach_lerp_(m, g, 1.0 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, 1.0 - beta2)
        c1, c2 = self._corrections()
        # From here on g is the update: m / (sqrt(v) c1 / sqrt(c2) + c1 eps), by one reciprocal without new memory.
        torch._foreach_copy_(g, v)
        torch._foreach_sqrt_(g)
        torch._foreach_mul_(g, c1 / math.sqrt(c2))
        torch._foreach_add_(g, c1 * self.eps)
        torch._foreach_reciprocal_(g)
        torch._foreach_mul_(g, m)
        if weight_decay > 0.0:
            torch._foreach_add_(g, [weights[name] for name in names], alpha=weight_decay)

    def _corrections(self) -> tuple[float, float]:
        if not self.bias_correction:
            return 1.0, 1.0
        beta1, beta2 = self.betas
        return 1.0 - beta1**self.steps_done, 1.0 - beta2**self.steps_done
