"""Which form of an operation computes it."""

from __future__ import annotations

import json

import pytest
import torch

from ptm_dist.errors import RecipeError
from ptm_dist.kernels import choice
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.recipe.schema import KernelsSection

CPU = torch.device("cpu")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measurements of a test's own."""

    def write(*rows: dict) -> None:
        path = tmp_path / "measured.json"
        path.write_text(json.dumps(rows))
        monkeypatch.setattr(choice, "_MEASURED", path)
        choice.measurements.cache_clear()
        choice._measured_form.cache_clear()

    yield write
    choice.measurements.cache_clear()
    choice._measured_form.cache_clear()


def row(width: int, dtype: str = "float32", **seconds: float) -> dict:
    return {"device": "cpu", "operation": "add_norm", "dtype": dtype, "width": width, "seconds": seconds}


def test_what_the_recipe_asks_for_counts_more_than_what_was_measured(measured):
    measured(row(64, reference=1.0, compile=0.5))
    asked = Choice.of(KernelsSection(add_norm="reference").model_dump(), CPU)
    assert asked.form(Operation.ADD_NORM, torch.zeros(2, 64)) is Form.REFERENCE
    assert Choice().form(Operation.ADD_NORM, torch.zeros(2, 64)) is Form.COMPILE


def test_the_measurement_with_the_nearest_width_and_the_same_type_counts(measured):
    measured(
        row(64, reference=1.0, compile=0.5),
        row(1024, reference=0.5, compile=1.0),
        row(64, "bfloat16", reference=0.1, compile=0.2),
    )
    forms = [Choice().form(Operation.ADD_NORM, torch.zeros(1, width)) for width in (32, 128, 512, 4096)]
    assert forms == [Form.COMPILE, Form.COMPILE, Form.REFERENCE, Form.REFERENCE]
    assert Choice().form(Operation.ADD_NORM, torch.zeros(1, 64, dtype=torch.bfloat16)) is Form.REFERENCE


def test_torch_computes_what_nobody_measured(measured):
    measured(row(64, reference=1.0, compile=0.5))
    assert Choice().form(Operation.BIAS_GELU, torch.zeros(1, 64)) is Form.REFERENCE
    assert Choice().form(Operation.ADD_NORM, torch.zeros(1, 64, dtype=torch.float64)) is Form.REFERENCE


def test_auto_asks_for_nothing():
    assert Choice.of(KernelsSection().model_dump(), CPU).asked == {}


def test_a_form_that_the_device_does_not_have_is_refused_with_what_to_use(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RecipeError, match=r"^kernels\.bias_gelu=triton needs .*; or use kernels\.bias_gelu=auto$"):
        Choice.of(KernelsSection(bias_gelu="triton").model_dump(), CPU)


def test_the_rows_in_the_package_are_sound():
    choice.measurements.cache_clear()
    for each in choice.measurements():
        assert Operation(each["operation"]) and each["width"] > 0 and each["device"]
        assert getattr(torch, each["dtype"]).is_floating_point
        assert all(Form(form) and seconds > 0 for form, seconds in each["seconds"].items())
