"""NVIDIA's apex, where a machine has it: kernels that update or measure many tensors at once.

Packages of that name on public indices are other projects. What counts is therefore the compiled part, `amp_C`, which
is looked for first: without it no package called apex is even imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

_DECOUPLED_DECAY = 1


@dataclass(frozen=True)
class Apex:
    """The kernels in use.

    Attributes:
        kernels: the module `amp_C`.
        call: apex's multi_tensor_applier.
    """

    kernels: Any
    call: Any

    def adamw(
        self,
        tensors: Sequence[Sequence[Tensor]],
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        step: int,
        *,
        bias_correction: bool,
    ) -> None:
        """Update weights and moments in place, as :class:`ptm_dist.optim.adamw.AdamW` says.

        Args:
            tensors: gradients, weights, first and second moments; four lists of the same shapes.
            learning_rate: of this update.
            betas: decay rates of the moments.
            eps: added to the root of the second moment.
            weight_decay: decoupled.
            step: of this update, from 1.
            bias_correction: divide the moments by what their start at zero leaves out.
        """
        lists = [list(each) for each in tensors]
        numbers = (learning_rate, *betas, eps, step, _DECOUPLED_DECAY, int(bias_correction), weight_decay)
        self.call(self.kernels.multi_tensor_adam, _nothing_overflows(lists[0][0]), lists, *numbers)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """L2 norm of each tensor, ``[n]``, float32."""
        kernel = self.kernels.multi_tensor_l2norm
        _, each = self.call(kernel, _nothing_overflows(tensors[0]), [list(tensors)], True)
        return each


@cache
def fused_apex() -> Apex | None:
    """NVIDIA's build with its CUDA kernels; None where there is none."""
    try:
        import amp_C  # type: ignore[import-not-found]
        from apex.multi_tensor_apply import multi_tensor_applier  # type: ignore[import-not-found]
        from apex.optimizers import FusedLAMB  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return None
    return Apex(amp_C, multi_tensor_applier)


def apex_for(tensors: Iterable[Tensor]) -> Apex | None:
    """Apex, if it is here and made for these tensors: on CUDA, contiguous, and float32, in which it computes."""
    fitting = all(t.is_cuda and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return fused_apex() if fitting else None


def _nothing_overflows(like: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=like.device)
