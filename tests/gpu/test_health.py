"""What a run does about its health, on CUDA; `make gpu-test`."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.training.pulse import Pulse
from tests.parity.cells import LEARNING_RATE, Cell, Problem, slice_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_pulse_takes_milliseconds_on_the_devices_own_clock():
    pulse = Pulse(torch.device("cuda"))
    assert 1e-4 < pulse.seconds() < 1.0


def test_an_update_that_is_not_accepted_leaves_every_bit_in_place():
    cell = Cell(Problem(precision="fp32"), 1, {})
    engine = cell.engine("cuda")
    engine.step(slice_batch(cell.problem, 0, engine), LEARNING_RATE)
    before = {name: box.local.clone() for name, box in engine.state().items()}
    result = engine.step(slice_batch(cell.problem, 1, engine), LEARNING_RATE, lambda loss, norm: False)
    assert (result.is_applied, result.is_finite) == (False, True)
    assert all(torch.equal(box.local, before[name]) for name, box in engine.state().items())
    engine.step(slice_batch(cell.problem, 2, engine), LEARNING_RATE, lambda loss, norm: True)
    assert engine.optimizer.steps_done == 2
    engine.close()
