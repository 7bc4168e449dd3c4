"""Apex is taken for what it can do, never for its name."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.optim.adamw import AdamW
from ptm_dist.optim.apex import Apex, apex_for, fused_apex
from ptm_dist.optim.forms import update_form

HERE = fused_apex() is not None and torch.cuda.is_available()


@pytest.fixture(autouse=True)
def looked_for_again():
    fused_apex.cache_clear()
    yield
    fused_apex.cache_clear()


def test_a_package_that_is_only_called_apex_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise SystemExit('another project was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    monkeypatch.setitem(sys.modules, "amp_C", None)
    assert fused_apex() is None
    assert "apex" not in sys.modules


def test_kernels_without_nvidia_s_optimizers_are_not_taken(tmp_path, monkeypatch):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    monkeypatch.setitem(sys.modules, "amp_C", ModuleType("amp_C"))
    assert fused_apex() is None


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules as NVIDIA's build has them, with the arguments of its C++ functions, computed by torch."""

    def multi_tensor_adam(
        chunk: int, noop: Tensor, lists: list[list[Tensor]], lr: float, beta1: float, beta2: float, eps: float,
        step: int, mode: int, bias_correction: int, weight_decay: float,
    ) -> None:  # fmt: skip
        assert (mode, bias_correction, noop.dtype, noop.item()) == (1, 1, torch.int32, 0)
        gradients, weights, first, second = lists
        steps = [torch.tensor(float(step - 1)) for _ in weights]
        adamw(
            weights, gradients, first, second, [], steps, amsgrad=False, beta1=beta1, beta2=beta2, lr=lr,
            weight_decay=weight_decay, eps=eps, maximize=False,
        )  # fmt: skip

    def multi_tensor_l2norm(chunk: int, noop: Tensor, lists: list[list[Tensor]], each: bool) -> tuple[Tensor, Tensor]:
        norms = torch.stack([tensor.norm() for tensor in lists[0]])
        return norms.norm(), norms if each else norms.new_empty(0)

    contents: dict[str, dict[str, Any]] = {
        "amp_C": {"multi_tensor_adam": multi_tensor_adam, "multi_tensor_l2norm": multi_tensor_l2norm},
        "apex": {},
        "apex.multi_tensor_apply": {"multi_tensor_applier": lambda kernel, *rest: kernel(65536, *rest)},
        "apex.optimizers": {"FusedLAMB": object},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)


def trained(device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {"a.weight": torch.randn(7, 5, generator=generator), "a.bias": torch.randn(7, generator=generator)}
    weights = {name: weight.to(device) for name, weight in weights.items()}
    rule = AdamW(lambda: weights, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        rule.step({name: torch.randn(w.shape, generator=generator).to(device) for name, w in weights.items()}, 1e-2)
    return {name: weight.cpu() for name, weight in weights.items()}


def test_apex_is_called_as_its_build_is_declared_and_makes_the_same_steps(monkeypatch):
    plain = trained()
    stand_in(monkeypatch)
    kernels = fused_apex()
    assert isinstance(kernels, Apex)
    monkeypatch.setattr("ptm_dist.optim.forms.apex_for", lambda tensors: kernels)
    for name, weight in trained().items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-6, atol=1e-6)
    tensors = [torch.randn(3, 4), torch.randn(5)]
    assert torch.equal(kernels.norms(tensors), torch.stack([tensor.norm() for tensor in tensors]))


def test_apex_is_left_alone_where_another_form_is_asked_for(monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr("ptm_dist.optim.forms.apex_for", lambda tensors: fused_apex())
    assert update_form(Choice(), [torch.zeros(3)]) is Form.APEX
    assert update_form(Choice({Operation.OPTIMIZER: Form.REFERENCE}), [torch.zeros(3)]) is Form.REFERENCE


def test_tensors_that_apex_is_not_made_for_are_left_to_torch(monkeypatch):
    stand_in(monkeypatch)
    assert fused_apex() is not None
    assert apex_for([torch.zeros(3)]) is None


@pytest.mark.gpu
@pytest.mark.skipif(not HERE, reason="needs NVIDIA's apex and a CUDA device")
def test_apex_itself_makes_the_steps_of_torch():
    assert apex_for([torch.zeros(3, device="cuda")]) is not None
    assert apex_for([torch.zeros(3, device="cuda", dtype=torch.float64)]) is None
    on_cuda = trained("cuda")
    for name, weight in trained().items():
        torch.testing.assert_close(on_cuda[name], weight, rtol=1e-5, atol=1e-6)
