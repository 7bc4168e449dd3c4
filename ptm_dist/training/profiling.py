"""A look inside a few steps: which operations run, when, and how long."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import LoggingSection
from ptm_dist.training.journal import Journal
from ptm_dist.training.operation_times import kernels, operations, table, total
from ptm_dist.training.trainer import Callback, StepRecord, Trainer

_ROWS = 40


class Profiling(Callback):
    """Records steps of this process with torch.profiler, once, and writes what it saw.

    A step is recorded from the end of the one before it: waiting for data is in it, and so is what callbacks do after
    the step before. This one comes first among them, so that nothing behind the last step is recorded. The step before
    the first one runs with the profiler already in place, which makes it slow, and not the recorded ones.

    Args:
        section: says which steps, and which ranks record them.
        folder: of the files, made when there are some.
        control: all ranks.
        device: of this process.
        journal: told where the files are.
    """

    def __init__(
        self, section: LoggingSection, folder: Path, control: ControlGroup, device: torch.device, journal: Journal
    ) -> None:
        self._start, self._steps = section.profile_start, section.profile_steps
        self._ranks = [rank for rank in section.profile_ranks if rank < control.size]
        self._rank = control.rank
        self._folder = folder
        self._device = device
        self._journal = journal
        self._done = 0
        self._profile: profile | None = None
        self._edges: list[float] = []

    def on_start(self, trainer: Trainer) -> None:
        """Get ready, if the first step of this process is the one before."""
        if not self._ranks:
            self._journal.say("nothing will be profiled: there is no rank of logging.profile_ranks")
        self._prepare()

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Begin to record behind this step, or end."""
        self._done += 1
        recorded = self._done - self._start
        if recorded >= 0:
            self._edges.append(time.perf_counter())
        if recorded == self._steps or (trainer.is_finished and 0 < recorded < self._steps):
            self._finish(record.step, recorded)
        else:
            if self._profile is not None:
                self._profile.step()
            self._prepare()

    def on_end(self, trainer: Trainer) -> None:
        """Write fewer steps than were asked for, if the run was stopped among them."""
        recorded = self._done - self._start
        if 0 < recorded < self._steps and not trainer.is_finished:
            self._finish(trainer.progress.step, recorded)
        elif recorded <= 0:
            self._journal.say(f"nothing was profiled: this process made {self._done} steps")

    def close(self) -> None:
        """Stop recording, and write nothing, where something failed."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _prepare(self) -> None:
        if self._done + 1 != self._start or self._rank not in self._ranks:
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        # The schedule is one step longer than what is asked for, so that recording ends in one way only: by stop().
        plan = schedule(wait=0, warmup=1, active=self._steps + 1, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, record_shapes=True)
        self._profile.start()

    def _finish(self, last: int, steps: int) -> None:
        """End the recording of `steps` steps, of which `last` is the last, and write it."""
        seconds, first = (self._edges[steps] - self._edges[0]) / steps, last - steps + 1
        if self._profile is not None:
            self._profile.stop()
            self._write(self._profile, first, steps, seconds)
            self._profile = None
        if self._ranks:
            names = ", ".join(_trace_name(first, rank) for rank in self._ranks)
            self._journal.event("profile", step=last, steps=steps, ranks=self._ranks)
            self._journal.say(f"profile of steps {first}-{last} in {self._folder}: {names}, and tables of operations")

    def _write(self, profiled: profile, first: int, steps: int, seconds: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(self._folder / _trace_name(first, self._rank)))
        text = self._report(profiled, first, steps, seconds)
        (self._folder / f"top-operations-step{first}-rank{self._rank}.txt").write_text(text)

    def _report(self, profiled: profile, first: int, steps: int, seconds: float) -> str:
        on_device = self._device.type == "cuda"
        name = torch.cuda.get_device_name(self._device) if on_device else "CPU"
        head = [
            f"steps {first}-{first + steps - 1} on rank {self._rank}, {name}, torch {torch.__version__}",
            f"{seconds * 1000:.3f} ms of wall time per step, profiler included",
        ]
        where, tables = "on the CPU", []
        if on_device:
            ran = kernels(profiled, steps)
            share = total(ran) / (seconds * 1000)
            head.append(f"{total(ran):.3f} ms of kernels per step, {share:.1%} of the wall time")
            where, tables = "on the device, in kernels that they start", [table("Kernels", ran, _ROWS)]
        spent = operations(profiled, steps, on_device=on_device)
        tables.append(table(f"Operations and shapes, by their own time {where}", spent, _ROWS))
        return "\n".join([*head, "", *tables])


def _trace_name(first: int, rank: int) -> str:
    return f"trace-step{first}-rank{rank}.json.gz"
