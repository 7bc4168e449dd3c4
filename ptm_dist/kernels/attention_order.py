"""Which of torch's attention kernels a device uses, and which of them comes first."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_REPEATABLE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_order(device: torch.device) -> AbstractContextManager[None]:
    """What forward and backward passes are to be entered under; what is compiled there is compiled for this order.

    On compute capability 9.x cuDNN's kernels come before FlashAttention-2, which torch takes first; published figures
    are 1.7 to 2.3 times its speed there, and less than its speed on 8.0 and 10.0 (huggingface/transformers, pull
    request 48163). torch goes on to the next where a kernel does not know the shapes, the type or the mask. Everywhere
    else the order is torch's own.

    Where algorithms are to be deterministic there is no cuDNN: its backward pass is not, and torch leaves it out by
    itself only where anything else that is not raises an error, and does not merely warn.

    Args:
        device: of the computation.
    """
    if device.type != "cuda":
        return nullcontext()
    if torch.are_deterministic_algorithms_enabled():
        return sdpa_kernel(_REPEATABLE)
    if torch.cuda.get_device_capability(device)[0] == 9:
        return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *_REPEATABLE], set_priority=True)
    return nullcontext()
