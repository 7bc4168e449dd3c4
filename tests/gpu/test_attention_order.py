"""Which attention kernel a step runs on CUDA; `make gpu-test`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ptm_dist.accounting.simulate import full_batch
from ptm_dist.engines.native import NativeEngine
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.training.processes import make_deterministic
from tests.distributed import run_distributed
from tests.ptm_dist.recipes import small_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Attention(TorchDispatchMode):
    """Notes attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("_scaled_dot_product"):
            self.names.add(name.removeprefix("_scaled_dot_product_").removesuffix("_backward"))
        return func(*args, **(kwargs or {}))


def kernels_of_a_step(recompute: str, deterministic: bool) -> set[str]:
    if deterministic:
        make_deterministic()
    recipe = small_recipe(
        model__hidden_size=128,
        model__num_heads=2,
        model__max_positions=128,
        data__sequence_length=128,
        training__precision="bf16",
        layout__recompute=recompute,
    )
    engine = NativeEngine(recipe, resolve_layout(recipe.layout, 1), torch.device("cuda", 0))
    with Attention() as attention:
        engine.step(full_batch(recipe, 0, 1), 1e-3)
    engine.close()
    return attention.names


def found(recompute: str, *, deterministic: bool) -> set[str]:
    return run_distributed(kernels_of_a_step, 1, recompute, deterministic, backend="nccl")[0]


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_cudnn_computes_attention_on_capability_9_alone(recompute):
    is_hopper = torch.cuda.get_device_capability()[0] == 9
    names = found(recompute, deterministic=False)
    assert names == {"cudnn_attention"} if is_hopper else "flash_attention" in names


def test_deterministic_steps_do_without_cudnn():
    assert found("none", deterministic=True) == {"flash_attention"}
