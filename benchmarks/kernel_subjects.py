"""The operations of ptm_dist/kernels as problems to be timed: each form of ours, and what others have for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.add_norm import add_norm
from ptm_dist.kernels.bias_gelu import bias_gelu
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.embedding import embed
from ptm_dist.optim.adamw import AdamW

Call = Callable[[], Any]
"""What is timed; those of ours give all results, gradients included."""
_EPS = 1e-5


@dataclass(frozen=True)
class Subject:
    """An operation at one size, forward and backward.

    Attributes:
        operation: of the kernels; None: measured, but nothing is chosen by it.
        name: of what is measured.
        rows: of the tensor.
        width: its last dimension.
        dtype: of it.
        least_bytes: that any form must read and write.
        calls: what is timed, by form; made when it is called, so that one that cannot be made is its own error.
        peers: the same of other projects.
    """

    operation: Operation | None
    name: str
    rows: int
    width: int
    dtype: torch.dtype
    least_bytes: int
    calls: Mapping[Form, Callable[[], Call]] = field(default_factory=dict)
    peers: Mapping[str, Callable[[], Call]] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """Makes inputs: the same numbers for each subject of a name and size.

    Attributes:
        dtype: to which they are rounded.
        device: that they are on.
        is_exact: whether they are then stored in float64, for results to compare with.
    """

    dtype: torch.dtype
    device: torch.device
    is_exact: bool = False

    def numbers(self, *shape: int, scale: float = 1.0, trains: bool = True) -> Tensor:
        """From a normal distribution."""
        rounded = (torch.randn(*shape, device=self.device) * scale).to(self.dtype)
        return (rounded.double() if self.is_exact else rounded).requires_grad_(trains)


def subject_of(name: str, rows: int, width: int, draw: Draw) -> Subject:
    """An operation at one size, with inputs of its own."""
    makers = {
        "add_norm": _add_norm,
        "bias_gelu": _bias_gelu,
        "embedding": _embedding,
        "cross_entropy": _cross_entropy,
        "linear_cross_entropy": _linear_cross_entropy,
        "optimizer": _optimizer,
    }
    torch.manual_seed(0)
    return makers[name](rows, width, draw)


def _choice(operation: Operation, form: Form) -> Choice:
    return Choice({operation: form})


def _forms(make: Callable[[Choice], Call], operation: Operation, *forms: Form) -> dict[Form, Callable[[], Call]]:
    def bound(form: Form) -> Callable[[], Call]:
        return lambda: make(_choice(operation, form))

    return {form: bound(form) for form in forms}


_FUSED = (Form.REFERENCE, Form.TRITON, Form.COMPILE)


def _trained(function: Callable[..., Any], *inputs: Tensor) -> Call:
    """Forward and backward; all inputs that can get a gradient."""
    wanted = [each for each in inputs if each.requires_grad]

    def forward() -> list[Tensor]:
        found = function(*inputs)
        return list(found) if isinstance(found, tuple) else [found]

    gradients = [torch.ones_like(each) for each in forward()]

    def call() -> Sequence[Tensor]:
        outs = forward()
        return *outs, *torch.autograd.grad(outs, wanted, gradients)

    return call


def _add_norm(rows: int, width: int, draw: Draw) -> Subject:
    branch, residual = (draw.numbers(1, rows, width) for _ in range(2))
    weight, bias = (draw.numbers(width) for _ in range(2))
    inputs = (branch, residual, weight, bias)

    def plain(branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + branch
        return F.layer_norm(total, (width,), weight, bias, _EPS), total

    def liger() -> Call:
        norm = import_module("liger_kernel.ops.layer_norm").LigerLayerNormFunction

        def by_liger(branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            total = residual + branch
            return norm.apply(total, weight, bias, _EPS), total

        return _trained(by_liger, *inputs)

    def make(choice: Choice) -> Call:
        return _trained(lambda *given: add_norm(*given, _EPS, None, choice), *inputs)

    operation = Operation.ADD_NORM
    # Two tensors in and two out; of the gradients two in and one out, and the sum once more.
    least = 8 * rows * width * draw.dtype.itemsize
    peers = {
        "torch": lambda: _trained(plain, *inputs),
        "torch.compile": lambda: _trained(torch.compile(plain), *inputs),
        "liger, addition by torch": liger,
    }
    return Subject(operation, operation.value, rows, width, draw.dtype, least, _forms(make, operation, *_FUSED), peers)


def _bias_gelu(rows: int, width: int, draw: Draw) -> Subject:
    hidden, bias = draw.numbers(rows, width), draw.numbers(width)

    def plain(hidden: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(hidden + bias, approximate="tanh")

    def make(choice: Choice) -> Call:
        return _trained(lambda *given: bias_gelu(*given, "tanh", choice), hidden, bias)

    operation = Operation.BIAS_GELU
    least = 5 * rows * width * draw.dtype.itemsize
    peers = {
        "torch": lambda: _trained(plain, hidden, bias),
        "torch.compile": lambda: _trained(torch.compile(plain), hidden, bias),
    }
    return Subject(operation, operation.value, rows, width, draw.dtype, least, _forms(make, operation, *_FUSED), peers)


def _embedding(rows: int, width: int, draw: Draw) -> Subject:
    token, position, segment = (draw.numbers(1, rows, width) for _ in range(3))
    weight, bias = (draw.numbers(width) for _ in range(2))
    inputs = (token, position[0], segment, weight, bias)

    def plain(token: Tensor, position: Tensor, segment: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(token + position + segment, (width,), weight, bias, _EPS)

    def make(choice: Choice) -> Call:
        def ours(token: Tensor, position: Tensor, segment: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return embed(token, position, segment, (weight, bias, _EPS), None, choice)

        return _trained(ours, *inputs)

    operation = Operation.EMBEDDING
    # Three in, one out; of the gradients one in and one out (it is the same for all three), and the sum once more.
    least = 7 * rows * width * draw.dtype.itemsize
    peers = {
        "torch": lambda: _trained(plain, *inputs),
        "torch.compile": lambda: _trained(torch.compile(plain), *inputs),
    }
    return Subject(operation, operation.value, rows, width, draw.dtype, least, _forms(make, operation, *_FUSED), peers)


def _cross_entropy(rows: int, width: int, draw: Draw) -> Subject:
    logits = draw.numbers(rows, width)
    targets = torch.randint(0, width, (rows,), device=draw.device)

    def make(choice: Choice) -> Call:
        module = import_module("ptm_dist.kernels.cross_entropy")
        own = logits.detach().clone()

        def call() -> Sequence[Tensor]:
            rows = module.cross_entropy_(own, targets, module.CrossEntropy(), choice, gradient=True)
            return rows.losses, own

        return call

    def plain(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets)

    def liger() -> Call:
        function = import_module("liger_kernel.ops.cross_entropy").LigerCrossEntropyFunction
        return _trained(
            lambda logits: function.apply(logits, targets, None)[0], logits.detach().clone().requires_grad_()
        )

    operation = Operation.CROSS_ENTROPY
    # Read once, and what is read is replaced by its gradient, in an online form that reads twice.
    least = 3 * rows * width * draw.dtype.itemsize
    peers = {
        "torch": lambda: _trained(plain, logits),
        "torch.compile": lambda: _trained(torch.compile(plain), logits),
        "liger": liger,
    }
    return Subject(operation, operation.value, rows, width, draw.dtype, least, _forms(make, operation, *_FUSED), peers)


_VOCABULARY = 50304


def _linear_cross_entropy(rows: int, width: int, draw: Draw) -> Subject:
    hidden = draw.numbers(rows, width)
    weight = draw.numbers(_VOCABULARY, width, scale=0.02)
    targets = torch.randint(0, _VOCABULARY, (rows,), device=draw.device)

    def make(choice: Choice) -> Call:
        head = import_module("ptm_dist.kernels.linear_cross_entropy")
        loss = import_module("ptm_dist.kernels.cross_entropy").CrossEntropy()

        def score(hidden: Tensor, weight: Tensor) -> Tensor:
            linear = partial(head.logits_of, weight=weight, bias=None)
            return head.score_hidden(linear, hidden, weight, None, targets, loss, choice).loss

        return _trained(score, hidden, weight)

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    def liger() -> Call:
        module = import_module("liger_kernel.ops.fused_linear_cross_entropy")
        function = module.LigerFusedLinearCrossEntropyFunction
        return _trained(lambda hidden, weight: function.apply(hidden, weight, targets)[0], hidden, weight)

    def cut() -> Call:
        function = import_module("cut_cross_entropy").linear_cross_entropy
        return _trained(lambda hidden, weight: function(hidden, weight, targets), hidden, weight)

    def torch_own() -> Call:
        function = getattr(F, "linear_cross_entropy", None)
        if function is None:
            raise NotImplementedError(f"torch {torch.__version__} has no linear_cross_entropy")
        return _trained(lambda hidden, weight: function(hidden, weight, targets), hidden, weight)

    peers = {
        "torch": lambda: _trained(plain, hidden, weight),
        "torch.compile": lambda: _trained(torch.compile(plain), hidden, weight),
        "torch linear_cross_entropy": torch_own,
        "liger": liger,
        "cut-cross-entropy": cut,
    }
    least = 4 * (rows + _VOCABULARY) * width * draw.dtype.itemsize
    calls = _forms(make, Operation.LINEAR_CROSS_ENTROPY, Form.WHOLE, Form.CHUNKED)
    return Subject(None, "linear_cross_entropy", rows, width, draw.dtype, least, calls, peers)


def _optimizer(rows: int, width: int, draw: Draw) -> Subject:
    weights = {"layer.weight": draw.numbers(rows, width, trains=False)}
    gradients = {"layer.weight": draw.numbers(rows, width, trains=False)}

    def make(choice: Choice) -> Call:
        update = AdamW(lambda: weights, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, choice=choice)

        def call() -> Sequence[Tensor]:
            update.step(gradients, 1e-4)
            return tuple(weights.values())

        return call

    def plain() -> Call:
        parameter = torch.nn.Parameter(weights["layer.weight"])
        parameter.grad = gradients["layer.weight"]
        return torch.optim.AdamW([parameter], lr=1e-4, fused=True).step

    operation = Operation.OPTIMIZER
    least = 7 * rows * width * draw.dtype.itemsize
    calls = _forms(make, operation, Form.REFERENCE, Form.TRITON, Form.APEX)
    return Subject(operation, operation.value, rows, width, draw.dtype, least, calls, {"torch fused AdamW": plain})
