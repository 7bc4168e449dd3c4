"""The kernels of AdamW and LAMB on CUDA, against torch and the rules in double precision."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.moments import moment_numbers
from ptm_dist.optim.build import build_optimizer
from ptm_dist.parallel.shards import LocalShard
from tests.ptm_dist.test_optimizers import HEAD_SIZE, RATE, SECTIONS, STEPS, WHOLE_MESH, gradients_of, section, trained
from tests.ptm_dist.test_optimizers import random_like_weights as weights_on_host

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BETAS, EPS, DECAY = (0.9, 0.98), 1e-6, 0.1
NUMBERS = moment_numbers(BETAS, EPS, 3)


@pytest.mark.parametrize("gradient", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 1025, 50304 * 768 + 3])
def test_a_step_of_adamw_is_that_of_torch(size, gradient):
    from ptm_dist.kernels.triton.optimizer import adamw_

    torch.manual_seed(0)
    weight, grad, first, second = (torch.randn(size, device="cuda") for _ in range(4))
    second, grad = second.square(), grad.to(gradient)
    parameter = torch.nn.Parameter(weight.double())
    optimizer = torch.optim.AdamW([parameter], RATE, BETAS, EPS, DECAY, foreach=False)
    optimizer.state[parameter] = {
        "step": torch.tensor(2.0),
        "exp_avg": first.double(),
        "exp_avg_sq": second.double(),
    }
    parameter.grad = grad.double() / 3.7
    optimizer.step()
    copy = torch.full((size,), torch.nan, dtype=torch.bfloat16, device="cuda")
    adamw_(weight, grad, first, second, NUMBERS, RATE, DECAY, torch.tensor(3.7, device="cuda"), copy)
    # A few roundings of float32 in numbers up to 6.
    torch.testing.assert_close(weight.double(), parameter.detach(), rtol=5e-7, atol=1e-6)
    assert torch.equal(copy, weight.bfloat16())
    adamw_(weight, grad, first, second, NUMBERS, RATE, DECAY, torch.tensor(torch.nan, device="cuda"), copy)
    assert torch.equal(copy, weight.bfloat16())


@pytest.mark.parametrize("form", [Form.REFERENCE, Form.TRITON])
@pytest.mark.parametrize("name", SECTIONS)
def test_an_optimizer_on_cuda_makes_the_steps_of_double_precision(name, form):
    weights = {key: weight.cuda() for key, weight in weights_on_host(0, dtype=torch.float32).items()}
    boxes = {key: LocalShard(weight, tuple(weight.shape), (0,) * weight.dim()) for key, weight in weights.items()}
    choice = Choice({Operation.OPTIMIZER: form})
    optimizer = build_optimizer(
        section(name), lambda: boxes, lambda _: (False, False), WHOLE_MESH, HEAD_SIZE, choice=choice
    )
    for step in range(STEPS):
        gradients = {key: 4.0 * gradient.cuda() for key, gradient in gradients_of(step, torch.float32).items()}
        optimizer.step(gradients, RATE, torch.tensor(4.0, device="cuda"))
    state = [*weights.values(), *(t for tensors in optimizer.slots().values() for t in tensors.values())]
    before = [tensor.clone() for tensor in state]
    poisoned = {key: torch.full_like(weight, torch.inf) for key, weight in weights.items()}
    optimizer.step(poisoned, RATE, torch.tensor(torch.inf, device="cuda"))
    assert all(torch.equal(tensor, old) for tensor, old in zip(state, before, strict=True))
    exact = trained(section(name))
    for parameter, weight in weights.items():
        # Twelve roundings to 6e-8 of weights up to 4, and of steps that are far smaller.
        torch.testing.assert_close(weight.cpu().double(), exact[parameter], rtol=1e-6, atol=1e-6)
