"""Have a device compute what is known: `python -m launcher.doctor.arithmetic cpu|cuda`, on all devices of this node."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_SIZE = 1024
_LARGEST = 3
_REPEATS = 3
_SEED = 20260801


class WrongResultError(RuntimeError):
    """A device computes wrongly; the message says which and what."""


def check_arithmetic(device: torch.device) -> float:
    """Multiply matrices whose product is known exactly, and others again and again.

    Whole numbers up to 3 and their products and sums (below 2^24) have exact float32 forms in whatever order they are
    summed, also from bfloat16 and TF32 factors, so that one wrong bit of the product is seen. The repetition finds
    errors that come and go.

    Returns: FLOP/s of products, of float32 on the CPU, of bfloat16 on a GPU.
    Raises: WrongResultError if a product is wrong, or not the same each time.
    """
    generator = torch.Generator().manual_seed(_SEED)
    left, right = (
        torch.randint(-_LARGEST, _LARGEST + 1, (_SIZE, _SIZE), generator=generator).double() for _ in range(2)
    )
    known = left @ right
    with _summed_in_float32():
        for dtype in (torch.float32, torch.bfloat16):
            product = left.to(device, dtype) @ right.to(device, dtype)
            wrong = int((product.cpu() != known.to(dtype)).sum())
            if wrong:
                raise WrongResultError(f"{device}: {wrong} of {known.numel()} products of {dtype} matrices are wrong")
    return _repeat(device, torch.randn(2, _SIZE, _SIZE, generator=generator))


@contextmanager
def _summed_in_float32() -> Iterator[None]:
    """By default, CUDA may round partial sums of bfloat16 products."""
    before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = before


def _repeat(device: torch.device, factors: Tensor) -> float:
    size = 8 if device.type == "cuda" else 1
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = factors.repeat(1, size, size).to(device, dtype)
    first, fastest = left @ right, 0.0
    for _ in range(_REPEATS):
        _wait_for(device)
        began = time.perf_counter()
        again = left @ right
        _wait_for(device)
        fastest = max(fastest, 2.0 * len(left) ** 3 / (time.perf_counter() - began))
        if not torch.equal(first, again):
            raise WrongResultError(f"{device}: a product of the same matrices comes out differently")
    return fastest


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str]) -> int:
    """Print the speed of each device in JSON; 0, or 1 if one computes wrongly."""
    kind = arguments[0]
    devices = [torch.device(kind, index) for index in range(torch.cuda.device_count())] if kind == "cuda" else []
    try:
        speeds = {str(device): check_arithmetic(device) for device in devices or [torch.device("cpu")]}
    except RuntimeError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    print(json.dumps(speeds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
