"""The text of a Slurm job: readable, complete, and the same for the same run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

from launcher.slurm.profile import ClusterProfile

COMMENT_PREFIX = "ptm:"
"""A job's comment is this and its run directory, by which `ptm status` knows it."""

_HEAD = """\

# Written by `ptm submit` for the run in $$PTM_RUN. One life of the run: it goes on from the newest checkpoint.
PTM_RUN=$run
"""

_SIGNALS = """\

# USR1 comes before the time limit, and from `ptm stop`: every process is told to save after its step and to leave.
# TERM comes with scancel and with preemption, when Slurm itself has told the processes.
SIGNAL=
STEP=
tell() {
    SIGNAL=USR1
    echo "$$(date +%T) signal USR1: save and leave"
    # Without a step the signal would be lost.
    while kill -0 "$$STEP" 2>/dev/null && ! squeue -h --steps -j "$$SLURM_JOB_ID" -o %i | grep -q '\\.[0-9]'; do
        sleep 1
    done
    [ -z "$$STEP" ] || scancel --signal=TERM "$$SLURM_JOB_ID"
}
trap tell USR1
trap 'SIGNAL=TERM' TERM
echo "$$(date '+%F %T') job $$SLURM_JOB_ID, life $${SLURM_RESTART_COUNT:-0}, on $$SLURM_JOB_NODELIST"
if [ -e "$$PTM_RUN/slurm/stop-$$SLURM_JOB_ID" ]; then exit 0; fi
"""

_NODES = """\

# As many of the nodes as the layout can use; the first of them is where all processes meet.
NODES=0
for count in $usable; do
    if [ "$$count" -le "$$SLURM_JOB_NUM_NODES" ]; then NODES=$$count; break; fi
done
if [ "$$NODES" = 0 ]; then echo "$$SLURM_JOB_NUM_NODES nodes are too few for the layout"; exit 1; fi
FIRST=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$$(scontrol show node "$$FIRST" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
export MASTER_ADDR=$${MASTER_ADDR:-$$FIRST}
"""

_RUN = """\

newest() { find "$$PTM_RUN/checkpoints" -maxdepth 1 -name 'step-*' | sort | tail -n 1; }
BEFORE=$$(newest)
rm -f "$$PTM_RUN"/logs/outcome.json "$$PTM_RUN"/logs/failure_rank*.json
if [ -n "$$SIGNAL" ]; then echo "the signal came before the run began"; exit 1; fi

echo "$$(date +%T) $$NODES of $$SLURM_JOB_NUM_NODES nodes"
$srun &
STEP=$$!
# A signal ends wait, but not the step.
while kill -0 "$$STEP" 2>/dev/null; do wait "$$STEP"; done
wait "$$STEP"
CODE=$$?
"""

_ENDING = """\

# A run that a signal stopped goes back to the queue, unless `ptm stop` or scancel sent it.
if ! grep -qs '"stop_reason": "SIG' "$$PTM_RUN/logs/outcome.json" && [ "$$SIGNAL" != USR1 ]; then exit "$$CODE"; fi
if [ "$$SIGNAL" = TERM ] || [ -e "$$PTM_RUN/slurm/stop-$$SLURM_JOB_ID" ]; then exit "$$CODE"; fi
if grep -qs '"stop_reason": null' "$$PTM_RUN/logs/outcome.json"; then exit "$$CODE"; fi
if [ "$$(newest)" = "$$BEFORE" ]; then
    echo "no step was saved in this life: give it more time, or more seconds between signal and limit"
    exit 1
fi
$requeue
"""

_REQUEUE = """\
printf '{"time": "%s", "event": "requeue", "job": %s}\\n' "$(date -u +%FT%T.000+00:00)" "$SLURM_JOB_ID" \\
    >> "$PTM_RUN/events.jsonl"
echo "$(date +%T) not finished: back to the queue"
scontrol requeue "$SLURM_JOB_ID\""""


@dataclass(frozen=True)
class JobScript:
    """A job, in the words of the user.

    Attributes:
        name: of the run.
        run: absolute run directory.
        work: absolute folder from which relative paths of the recipe count.
        recipe: absolute file with the resolved recipe.
        nodes: least and most nodes to ask for.
        usable: numbers of nodes that the layout can use, within `nodes`.
        profile: the cluster.
        python: of every process, in the container if there is one.
    """

    name: str
    run: Path
    work: Path
    recipe: Path
    nodes: tuple[int, int]
    usable: tuple[int, ...]
    profile: ClusterProfile
    python: str

    def text(self) -> str:
        """The script that sbatch takes."""
        values = {
            "run": shlex.quote(str(self.run)),
            "usable": " ".join(map(str, sorted(self.usable, reverse=True))),
            "srun": " \\\n    ".join(self._srun()),
            "requeue": _REQUEUE if self.profile.requeue else 'exit "$CODE"',
        }
        options = "".join(f"#SBATCH {option}\n" for option in self._options())
        before = Template(_HEAD + _SIGNALS).substitute(values)
        after = Template(_NODES + _RUN + _ENDING).substitute(values)
        return f"#!/bin/bash\n{options}{before}{self._surroundings()}{after}"

    def _options(self) -> Iterator[str]:
        profile = self.profile
        least, most = self.nodes
        yield f"--job-name={self.name}"
        yield f"--comment={_quoted(f'{COMMENT_PREFIX}{self.run}')}"
        yield f"--chdir={_quoted(str(self.work))}"
        yield f"--output={_quoted(f'{self.run}/logs/slurm-%j.log')}"
        yield "--open-mode=append"
        for key in ("partition", "account", "qos", "constraint", "time"):
            if getattr(profile, key) is not None:
                yield f"--{key}={_quoted(getattr(profile, key))}"
        yield f"--nodes={least}" if least == most else f"--nodes={least}-{most}"
        if least == most or profile.processes_per_node > 1:
            # Slurm gives the least number of nodes if this is 1, and else the most that are free.
            yield f"--ntasks-per-node={profile.processes_per_node}"
        if profile.gpus_per_node is not None:
            form = "gres=gpu:" if profile.gpu_option == "gres" else "gpus-per-node="
            yield f"--{form}{profile.gpus_per_node}"
        if profile.cpus_per_task is not None:
            yield f"--cpus-per-task={profile.cpus_per_task}"
        if profile.memory is not None:
            yield f"--mem={profile.memory}"
        if profile.exclusive:
            yield "--exclusive"
        yield f"--signal=B:USR1@{profile.signal_seconds}"
        yield "--requeue" if profile.requeue else "--no-requeue"
        if profile.no_kill:
            yield "--no-kill"
        yield from profile.options

    def _surroundings(self) -> str:
        lines = []
        if self.profile.setup:
            lines += ["", "set -e", *self.profile.setup, "set +e"]
        variables = dict(self.profile.variables)
        if self.profile.cpus_per_task is not None:
            variables.setdefault("OMP_NUM_THREADS", str(self.profile.cpus_per_task))
        if variables:
            lines += ["", *(f"export {name}={shlex.quote(value)}" for name, value in variables.items())]
        return "".join(f"{line}\n" for line in lines)

    def _srun(self) -> Iterator[str]:
        profile, container = self.profile, self.profile.container
        each = profile.processes_per_node
        yield f'srun --nodes="$NODES" --ntasks="$((NODES * {each}))" --ntasks-per-node={each} --relative=0'
        # Other processes of a broken step wait for it in vain.
        yield "--kill-on-bad-exit=1"
        if profile.cpus_per_task is not None:
            # sbatch's own is not passed on since Slurm 22.05.
            yield f"--cpus-per-task={profile.cpus_per_task}"
        if profile.no_kill:
            yield "--no-kill"
        task = f"{shlex.quote(self.python)} -m launcher.slurm.task {shlex.quote(str(self.recipe))}"
        if container is None:
            yield task
        elif container.kind == "pyxis":
            yield f"--container-image={shlex.quote(container.image)}"
            if container.mounts:
                yield f"--container-mounts={shlex.quote(','.join(container.mounts))}"
            yield f"--container-workdir={shlex.quote(str(self.work))}"
            yield from container.options
            yield task
        else:
            gpus = ["--nv"] if profile.gpus_per_node is not None else []
            binds = [f"--bind {shlex.quote(mount)}" for mount in container.mounts]
            yield " ".join(["apptainer exec", *gpus, *binds, f"--pwd {shlex.quote(str(self.work))}"])
            yield from container.options
            yield shlex.quote(container.image)
            yield task


def _quoted(value: str) -> str:
    """A value as sbatch reads it in a line of options."""
    return shlex.quote(value)
