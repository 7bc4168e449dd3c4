from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import transformers
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    PolynomialLR,
    SequentialLR,
)

from ptm_dist.errors import RecipeError
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.recipe.schema import ScheduleSection

PEAK, WARMUP, END, TOTAL = 3e-3, 10, 60, 80
SHAPES = get_args(ScheduleSection.model_fields["kind"].annotation)


def ours(kind: str, min_ratio: float = 0.1, warmup: int = WARMUP, end: int | None = END, **values: Any) -> list[float]:
    schedule = ScheduleSection(kind=kind, warmup_steps=warmup, decay_steps=end, min_ratio=min_ratio, **values)
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


def test_a_polynomial_decay_to_zero_equals_torch():
    optimizer = torch_optimizer()
    decay = PolynomialLR(optimizer, total_iters=END, power=2.5)
    theirs = trace(optimizer, decay)
    # torch multiplies the rates of all steps: END roundings of 1e-16.
    assert ours("polynomial", 0.0, warmup=0, power=2.5) == pytest.approx(theirs, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("power", [1.0, 0.5, 3.0])
def test_a_polynomial_decay_to_a_floor_equals_transformers_after_the_warmup(power):
    optimizer = torch_optimizer()
    theirs = trace(
        optimizer,
        transformers.get_polynomial_decay_schedule_with_warmup(optimizer, WARMUP, END, lr_end=0.1 * PEAK, power=power),
    )
    mine = ours("polynomial", 0.1, power=power)
    assert mine[WARMUP:] == pytest.approx(theirs[WARMUP:], rel=1e-12)
    assert mine[: WARMUP - 1] == pytest.approx(theirs[1:WARMUP], rel=1e-12)


def test_a_polynomial_of_power_one_is_linear():
    assert ours("polynomial", 0.2) == pytest.approx(ours("linear", 0.2), rel=1e-14)


def test_inverse_sqrt_is_transformers_one_step_ahead():
    optimizer = torch_optimizer()
    theirs = trace(optimizer, transformers.get_inverse_sqrt_schedule(optimizer, WARMUP))
    assert ours("inverse_sqrt")[:-1] == pytest.approx(theirs[1:], rel=1e-12)


def test_inverse_sqrt_is_the_formula_of_attention_is_all_you_need():
    # d_model**-0.5 * min(n**-0.5, n * W**-1.5), with d_model such that the highest rate is PEAK.
    scale = PEAK * math.sqrt(WARMUP)
    theirs = [scale * min(n**-0.5, n * WARMUP**-1.5) for n in range(1, TOTAL + 1)]
    assert ours("inverse_sqrt") == pytest.approx(theirs, rel=1e-12)


def test_inverse_sqrt_without_warmup_starts_at_the_peak_and_knows_no_floor():
    rates = ours("inverse_sqrt", 1.0, warmup=0)
    assert rates == ours("inverse_sqrt", 0.0, warmup=1)
    assert (rates[0], rates[3], rates[-1]) == pytest.approx((PEAK, PEAK / 2, PEAK / math.sqrt(TOTAL)), rel=1e-14)


@pytest.mark.parametrize("min_ratio", [0.0, 0.1])
def test_wsd_equals_transformers_after_the_warmup(min_ratio):
    optimizer = torch_optimizer()
    cooldown = 15
    scheduler = transformers.get_wsd_schedule(
        optimizer,
        num_warmup_steps=WARMUP,
        num_decay_steps=cooldown,
        num_stable_steps=END - WARMUP - cooldown,
        decay_type="linear",
        min_lr_ratio=min_ratio,
    )
    mine, theirs = ours("wsd", min_ratio, cooldown_steps=cooldown), trace(optimizer, scheduler)
    assert mine[WARMUP:] == pytest.approx(theirs[WARMUP:], rel=1e-12, abs=1e-18)
    assert set(mine[WARMUP - 1 : END - cooldown + 1]) == {PEAK}
    assert mine[END - cooldown + 1] < PEAK


def test_a_cooldown_over_all_that_follows_the_warmup_is_linear():
    assert ours("wsd", 0.1, cooldown_steps=END - WARMUP) == ours("linear", 0.1)


def test_a_cooldown_ends_with_the_run_when_nothing_else_is_said():
    assert ours("wsd", 0.1, end=None, cooldown_steps=7) == ours("wsd", 0.1, end=TOTAL, cooldown_steps=7)


@pytest.mark.parametrize("kind", SHAPES)
def test_no_shape_jumps_at_the_end_of_the_warmup(kind):
    rates = ours(kind, cooldown_steps=20)
    assert rates[WARMUP - 1] == PEAK == max(rates)
    # The steepest start, the exponential one, loses log(10) / 50 of the peak in a step.
    assert rates[WARMUP + 1] >= 0.9 * PEAK
    assert rates[WARMUP:] == sorted(rates[WARMUP:], reverse=True)


def test_after_the_decay_the_rate_stays_at_its_floor():
    for kind in ("linear", "cosine", "exponential", "polynomial", "wsd"):
        assert ours(kind, 0.1, cooldown_steps=5)[END:] == pytest.approx([0.1 * PEAK] * (TOTAL - END), rel=1e-12)


def test_the_last_warmup_step_has_the_peak_and_no_step_has_zero():
    rates = ours("cosine", 0.1)
    assert rates[0] == PEAK / WARMUP
    assert rates[WARMUP - 1] == rates[WARMUP] == max(rates) == PEAK


def test_without_a_decay_length_the_decay_ends_with_the_run():
    assert ours("linear", 0.1, end=None) == ours("linear", 0.1, end=TOTAL)


def test_a_warmup_as_long_as_the_decay_goes_on_at_the_floor():
    rates = ours("cosine", 0.5, warmup=END)
    assert rates[END - 1 : END + 1] == pytest.approx([PEAK, 0.5 * PEAK])


def test_an_exponential_decay_to_zero_is_refused_at_the_first_step():
    schedule = ScheduleSection(kind="exponential", warmup_steps=WARMUP, min_ratio=0.0)
    with pytest.raises(RecipeError, match=r"schedule\.min_ratio"):
        learning_rate(schedule, PEAK, 0, TOTAL)


@pytest.mark.parametrize(
    ("cooldown_steps", "end", "message"),
    [
        (None, END, r"needs schedule\.cooldown_steps"),
        (END - WARMUP + 1, END, r"schedule\.cooldown_steps=51 does not fit .* use at most 50"),
        (1, WARMUP, "use at most 0"),
        (TOTAL - WARMUP + 1, None, "use at most 70"),
    ],
)
def test_a_cooldown_that_is_missing_or_does_not_fit_is_refused_at_the_first_step(cooldown_steps, end, message):
    schedule = ScheduleSection(kind="wsd", warmup_steps=WARMUP, decay_steps=end, cooldown_steps=cooldown_steps)
    with pytest.raises(RecipeError, match=message):
        learning_rate(schedule, PEAK, 0, TOTAL)
