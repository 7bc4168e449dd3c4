"""`data_pipeline` alone, as another trainer would use it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import data_pipeline

TORCH_NAMES = {"StatefulLoader", "StepBatch", "training_batches", "validation_batches"}


@pytest.mark.parametrize("name", data_pipeline.__all__)
def test_only_the_loader_imports_torch(name):
    code = f"import sys, data_pipeline; data_pipeline.{name}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(name in TORCH_NAMES)


def test_an_unknown_name_is_an_error_of_the_usual_kind():
    with pytest.raises(AttributeError, match="no attribute 'ShardsSet'"):
        _ = data_pipeline.ShardsSet
