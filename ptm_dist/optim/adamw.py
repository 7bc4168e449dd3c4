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

from ptm_dist.kernels.choice import Choice, Form
from ptm_dist.kernels.moments import moment_numbers
from ptm_dist.optim.apex import fused_apex
from ptm_dist.optim.decay import decay_groups
from ptm_dist.optim.forms import update_form
from ptm_dist.optim.optimizer import Shards, divided_before, is_infinite, zero_slot

_Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""Gradients, weights, first and second moments."""


class AdamW:
    """Moments m and v by parameter name, and the fused update: torch's, NVIDIA's apex's, or our own in Triton.

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
        choice: the forms of the run; by default nothing is asked for.
    """

    def __init__(
        self,
        parameters: Shards,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        bias_correction: bool = True,
        choice: Choice | None = None,
    ) -> None:
        self._parameters = parameters
        self._choice = choice or Choice()
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.bias_correction = bias_correction
        self.steps_done = 0
        self.exp_avg = zero_slot(parameters())
        self.exp_avg_sq = zero_slot(parameters())

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float, divisor: Tensor | None = None) -> None:
        """Update every shard in place; see :class:`ptm_dist.optim.optimizer.Optimizer`."""
        parameters = self._parameters()
        for names, weight_decay in decay_groups(parameters, self.weight_decay):
            slots = (gradients, parameters, self.exp_avg, self.exp_avg_sq)
            grads, weights, first, second = ([tensors[name] for name in names] for tensors in slots)
            lists = (grads, weights, first, second)
            match update_form(self._choice, [*weights, *grads]):
                case Form.APEX:
                    self._by_apex(lists, learning_rate, weight_decay, divisor)
                case Form.TRITON:
                    self._by_triton(lists, learning_rate, weight_decay, divisor)
                case _:
                    self._by_torch(lists, learning_rate, weight_decay, divisor)
        self.steps_done += 1

    def slots(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The two moments."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def _by_torch(self, lists: _Lists, learning_rate: float, weight_decay: float, divisor: Tensor | None) -> None:
        grads, weights, first, second = lists
        # After infinitely many steps the corrections 1 - b^t are 1, exactly.
        steps_done = float(self.steps_done) if self.bias_correction else math.inf
        steps = torch.full((len(weights),), steps_done, device=weights[0].device)
        adamw(
            weights,
            grads,
            first,
            second,
            [],
            list(steps.unbind()),
            fused=True,
            grad_scale=divided_before(grads, divisor),
            found_inf=is_infinite(divisor),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )

    def _by_apex(self, lists: _Lists, learning_rate: float, weight_decay: float, divisor: Tensor | None) -> None:
        apex = fused_apex()
        assert apex is not None
        if divisor is not None:
            torch._foreach_div_(lists[0], divisor)
        step, correct = self.steps_done + 1, self.bias_correction
        apex.adamw(lists, learning_rate, self.betas, self.eps, weight_decay, step, bias_correction=correct)

    def _by_triton(self, lists: _Lists, learning_rate: float, weight_decay: float, divisor: Tensor | None) -> None:
        from ptm_dist.kernels.triton.optimizer import adamw_

        moments = moment_numbers(self.betas, self.eps, self.steps_done + 1 if self.bias_correction else None)
        for gradient, weight, first, second in zip(*lists, strict=True):
            adamw_(weight, gradient, first, second, moments, learning_rate, weight_decay, divisor)
