from __future__ import annotations

import pytest
import torch
import transformers
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from ptm_dist.errors import RecipeError
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.recipe.schema import ScheduleSection

PEAK, WARMUP, END, TOTAL = 3e-3, 10, 60, 80


def ours(kind: str, min_ratio: float, warmup: int = WARMUP, end: int | None = END) -> list[float]:
    schedule = ScheduleSection(kind=kind, warmup_steps=warmup, decay_steps=end, min_ratio=min_ratio)
    return [learning_rate(schedule, PEAK, step, TOTAL) for step in range(TOTAL)]


def torch_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def trace(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> list[float]:
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "exponential"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_shape_equals_torch_schedulers_in_sequence(kind):
    ratio, length = 0.1, END - WARMUP
    optimizer = torch_optimizer()
    decay = {
        "constant": lambda: ConstantLR(optimizer, factor=1.0),
        "linear": lambda: LinearLR(optimizer, 1.0, ratio, total_iters=length),
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=length, eta_min=ratio * PEAK),
        "exponential": lambda: ExponentialLR(optimizer, gamma=ratio ** (1 / length)),
    }[kind]()
    warmup = LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP - 1)
    theirs = trace(optimizer, SequentialLR(optimizer, [warmup, decay], milestones=[WARMUP]))
    mine = ours(kind, ratio)
    assert mine[: END + 1] == pytest.approx(theirs[: END + 1], rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_to_zero_equals_transformers_and_warmup_is_one_step_ahead(kind):
    optimizer = torch_optimizer()
    theirs = trace(
        optimizer,
        transformers.get_scheduler(kind, optimizer, num_warmup_steps=WARMUP, num_training_steps=END),
    )
    mine = ours(kind, 0.0)
    assert mine[WARMUP : END + 1] == pytest.approx(theirs[WARMUP : END + 1], rel=1e-12, abs=1e-18)
    assert mine[: WARMUP - 1] == pytest.approx(theirs[1:WARMUP], rel=1e-12)


def test_after_the_decay_the_rate_stays_at_its_floor():
    for kind in ("linear", "cosine", "exponential"):
        assert ours(kind, 0.1)[END:] == pytest.approx([0.1 * PEAK] * (TOTAL - END), rel=1e-12)


def test_the_last_warmup_step_has_the_peak_and_no_step_has_zero():
    rates = ours("cosine", 0.1)
    assert rates[0] == PEAK / WARMUP
    assert rates[WARMUP - 1] == rates[WARMUP] == max(rates) == PEAK


def test_without_a_decay_length_the_decay_ends_with_the_run():
    assert ours("linear", 0.1, end=None) == ours("linear", 0.1, end=TOTAL)


def test_a_warmup_as_long_as_the_decay_goes_on_at_the_floor():
    rates = ours("cosine", 0.5, warmup=END)
    assert rates[END - 1 : END + 1] == pytest.approx([PEAK, 0.5 * PEAK])


def test_an_exponential_decay_to_zero_is_refused():
    with pytest.raises(RecipeError, match=r"schedule\.min_ratio"):
        ours("exponential", 0.0)
