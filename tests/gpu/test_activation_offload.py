"""Tensors that wait on the host for the backward pass, on CUDA; `make gpu-test`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptm_dist.models import LanguageModel, build_model
from ptm_dist.parallel.activation_offload import offload_activations
from ptm_dist.parallel.host_lane import CudaLane
from ptm_dist.parallel.recompute import apply_recompute
from ptm_dist.recipe.schema import ModelSection, Recompute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LAYERS, BATCH, LENGTH, WIDTH = 12, 8, 1024, 768


def small_model() -> LanguageModel:
    torch.manual_seed(0)
    section = ModelSection(
        vocab_size=1024, max_positions=LENGTH, hidden_size=WIDTH, num_layers=LAYERS, num_heads=WIDTH // 64
    )
    return build_model(section).to("cuda", torch.bfloat16)


def gradients(model: LanguageModel, steps: int = 1) -> tuple[list[Tensor], int]:
    """Of the last step, and the most bytes that the device held in it beyond what it held before."""
    ids = torch.randint(0, 1024, (BATCH, LENGTH), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        hidden = model.encode(ids)
        hidden.float().square().mean().backward()
    torch.cuda.synchronize()
    found = [p.grad for name, p in model.named_parameters() if name.startswith("layers.") and p.grad is not None]
    return found, torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("kind", list(Recompute))
@pytest.mark.parametrize("smallest", [0, 1 << 20])
def test_gradients_are_the_same_to_the_bit(kind, smallest):
    torch.use_deterministic_algorithms(True, warn_only=True)
    models = [small_model(), small_model()]
    for model in models:
        apply_recompute(model, kind)
    offload_activations(models[0], lambda device: CudaLane(device, smallest))
    # Three steps: page-locked memory and memory of the device are used again in the later ones.
    (ours, _), (theirs, _) = (gradients(model, steps=3) for model in models)
    torch.use_deterministic_algorithms(False)
    assert len(ours) == len(theirs) > LAYERS
    assert all(map(torch.equal, ours, theirs))


def test_the_device_holds_two_blocks_of_twelve():
    models = [small_model(), small_model()]
    offload_activations(models[0])
    (_, away), (_, here) = (gradients(model, steps=2) for model in models)
    # Of a block's 16 bf16 streams of hidden states and more, ten blocks' are gone; gradients of weights are in both.
    assert here - away > (LAYERS - 3) * 16 * BATCH * LENGTH * WIDTH * 2
