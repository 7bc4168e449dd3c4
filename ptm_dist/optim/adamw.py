"""AdamW on the shards a rank holds (Loshchilov & Hutter 2019, arXiv 1711.05101).

The update is elementwise: computed on shards it equals the update of whole parameters, and needs no
communication.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ptm_dist.optim.apex import apex_for
from ptm_dist.optim.decay import decay_groups
from ptm_dist.optim.optimizer import Shards, zero_slot


class AdamW:
    """Moments m and v by parameter name, and the fused update: torch's, or that of NVIDIA's apex where it is.

    With learning rate a, weight decay d and gradient g, each step t = 1, 2, ... does

    - ``m = b1 m + (1 - b1) g`` and ``v = b2 v + (1 - b2) g^2``;
    - ``w -= a (m' / (sqrt(v') + eps) + d w)``

    where ``m' = m / (1 - b1^t)`` and ``v' = v / (1 - b2^t)``, or m and v themselves without bias correction,
    as in the original BERT (Devlin et al. 2019, arXiv 1810.04805, optimization.py).

    Args:
        parameters: this rank's shards.
        betas: decay rates b1 and b2 of the two moments, below 1.
        eps: added to the root of the second moment.
        weight_decay: decoupled, see :func:`ptm_dist.optim.decay.is_decayed`.
        bias_correction: divide the moments by what their start at zero leaves out.
    """

    def __init__(
        self,
        parameters: Shards,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        bias_correction: bool = True,
    ) -> None:
        self._parameters = parameters
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.bias_correction = bias_correction
        self.steps_done = 0
        self.exp_avg = zero_slot(parameters())
        self.exp_avg_sq = zero_slot(parameters())

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """Update every shard in place; see :class:`ptm_dist.optim.optimizer.Optimizer`."""
        parameters = self._parameters()
        for names, weight_decay in decay_groups(parameters, self.weight_decay):
            self._update(names, parameters, gradients, learning_rate, weight_decay)
        self.steps_done += 1

    def slots(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The two moments."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def _update(
        self,
        names: list[str],
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        slots = (gradients, parameters, self.exp_avg, self.exp_avg_sq)
        grads, weights, first, second = ([tensors[name] for name in names] for tensors in slots)
        if (apex := apex_for([*grads, *weights])) is not None:
            lists, step, correct = (grads, weights, first, second), self.steps_done + 1, self.bias_correction
            apex.adamw(lists, learning_rate, self.betas, self.eps, weight_decay, step, bias_correction=correct)
            return
        # After infinitely many steps the corrections 1 - b^t are 1, exactly.
        steps_done = float(self.steps_done) if self.bias_correction else math.inf
        steps = torch.full((len(names),), steps_done, device=weights[0].device)
        adamw(
            weights,
            grads,
            first,
            second,
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )
