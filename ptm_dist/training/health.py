"""What a run does about steps that are no good: goes on without them, goes back, or stops."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ptm_dist.engines.engine import Accept, StepResult
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import HealthSection
from ptm_dist.training.journal import Journal
from ptm_dist.training.skips import Skips
from ptm_dist.training.spikes import LossWindow, Spike
from ptm_dist.training.trainer import DivergenceError, no_number


class RollbackRequired(Exception):  # noqa: N818  nothing went wrong with the program
    """The run goes on from an earlier checkpoint, without the updates of some steps.

    Attributes:
        first: of the steps whose updates are left out.
        last: of them, the step that was no good.
        reason: in words.
    """

    def __init__(self, first: int, last: int, reason: str) -> None:
        super().__init__(f"step {last}: {reason}")
        self.first = first
        self.last = last
        self.reason = reason


class Finding(IntEnum):
    """What is wrong with a step, the worse the higher."""

    NOTHING = 0
    SPIKE = 1
    NO_NUMBER = 2


@dataclass(frozen=True)
class _Judgement:
    """What all ranks think of a step, and the spike that this rank sees in it."""

    finding: Finding
    spike: Spike | None


class Health:
    """The judge that the section `health` of a recipe describes (:class:`ptm_dist.training.trainer.Judge`).

    Whether a step is good depends on losses alone, which every rank knows; where the answer can change what is learnt
    the ranks compare theirs all the same.

    Args:
        section: of the recipe.
        skips: decisions so far; new ones are added.
        window: the losses before.
        control: all ranks.
        journal: told of every decision.

    Attributes:
        skips: the updates that are left out.
        window: losses of the newest updates.
    """

    def __init__(
        self, section: HealthSection, skips: Skips, window: LossWindow, control: ControlGroup, journal: Journal
    ) -> None:
        self._section = section
        self.skips = skips
        self.window = window
        self._control = control
        self._journal = journal
        self._judged: _Judgement | None = None

    def passes_over(self, step: int) -> bool:
        """Whether an earlier decision leaves the step out."""
        return self.skips.covers(step)

    def acceptance(self, step: int) -> Accept | None:
        """A question before the update, which costs a wait for the loss, only where updates may be skipped."""
        self._judged = None
        return self._accept if "skip" in (self._section.on_nonfinite, self._section.on_spike) else None

    def settle(self, step: int, result: StepResult) -> None:
        """Act upon what a step was.

        Raises:
            DivergenceError: if the run shall stop.
            RollbackRequired: if it shall go on from an earlier checkpoint.
        """
        judged = self._judged or self._judge(result.loss, result.grad_norm)
        action, reason = self._action(judged, result)
        if action == "ignore":
            self.window.add(result.loss)
            return
        if action == "stop":
            raise no_number(step, result) if judged.spike is None else self._too_high(step, reason)
        self._check_limit(step, reason)
        if action == "rollback":
            raise RollbackRequired(self.skips.first_of_newest(self._section.rollback_steps, step), step, reason)
        self.skips.add(step, step)
        self._journal.event("skip", step=step, reason=reason)
        self._journal.say(f"WARNING: step {step}: {reason}; its update is left out")

    def _accept(self, loss: float, norm: float) -> bool:
        self._judged = self._judge(loss, norm)
        return self._judged.finding is Finding.NOTHING

    def _judge(self, loss: float, norm: float) -> _Judgement:
        result, spike = StepResult(loss, norm, 0), None
        if result.is_finite and self._section.on_spike != "ignore":
            spike = self.window.judge(loss)
        finding = Finding.SPIKE if spike is not None else Finding.NOTHING
        finding = finding if result.is_finite else Finding.NO_NUMBER
        if (self._section.on_nonfinite, self._section.on_spike) != ("stop", "ignore"):
            finding = Finding(int(self._control.maxima(float(finding))[0]))
        return _Judgement(finding, spike)

    def _action(self, judged: _Judgement, result: StepResult) -> tuple[str, str]:
        """What to do, and why."""
        if judged.finding is Finding.NO_NUMBER or (judged.finding is Finding.NOTHING and not result.is_applied):
            return self._section.on_nonfinite, f"the loss is {result.loss} and the gradient norm {result.grad_norm}"
        if judged.finding is Finding.NOTHING:
            return "ignore", ""
        words = judged.spike.in_words() if judged.spike is not None else f"the loss is {result.loss:.4f}, a spike"
        return self._section.on_spike, words

    def _check_limit(self, step: int, reason: str) -> None:
        section = self._section
        if self.skips.decisions_after(step - section.limit_steps) >= section.limit:
            raise DivergenceError(
                f"step {step}: {reason}; that is more than health.limit={section.limit} times within "
                f"{section.limit_steps} steps: lower optimizer.learning_rate, look at the samples of this step with "
                f"`ptm data show --step {step}`, or raise the limit"
            )

    def _too_high(self, step: int, reason: str) -> DivergenceError:
        return DivergenceError(
            f"step {step}: {reason} of the {self._section.spike_window} steps before; nothing of this step was saved: "
            f"look at its samples with `ptm data show --step {step}`, or have it left out with health.on_spike=skip or "
            "rollback"
        )
