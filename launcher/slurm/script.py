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

JOINER_PREFIX = "ptm-node-for:"
"""The same for a job that only brings a node to another one."""

SUCCESSOR_PREFIX = "ptm-successor-for:"
"""The same for a job that waits whether it is needed."""

BAD_NODES = "bad-nodes"
"""File beside the job's script: nodes that no later life shall get, a line each."""

REQUEUE_CODE = 3
"""Exit code of a coordinator that wants to be started again with more nodes."""

_HEAD = """\

# Written by `ptm submit` for the run in $$PTM_RUN. One life of the run: it goes on from the newest checkpoint.
PTM_RUN=$run
note() {
    printf '{"time": "%s", "event": "%s", "job": %s%s}\\n' \\
        "$$(date -u +%FT%T.000+00:00)" "$$1" "$$SLURM_JOB_ID" "$${2:-}" >> "$$PTM_RUN/events.jsonl"
}
"""

_SIGNALS = """\

# USR1 comes before the time limit, and from `ptm stop`: the coordinator has all processes save after their step and
# leave. TERM comes with scancel and with preemption, when Slurm itself has told the processes.
SIGNAL=
COORDINATOR=
tell() {
    SIGNAL=USR1
    echo "$$(date +%T) signal USR1: save and leave"
    # Before it listens the signal would kill it.
    while kill -0 "$$COORDINATOR" 2>/dev/null && [ ! -e "$$PTM_RUN/logs/coordinator.json" ]; do sleep 0.2; done
    [ -z "$$COORDINATOR" ] || kill -TERM "$$COORDINATOR"
}
trap tell USR1
trap 'SIGNAL=TERM' TERM
echo "$$(date '+%F %T') job $$SLURM_JOB_ID, life $${SLURM_RESTART_COUNT:-0}, on $$SLURM_JOB_NODELIST"
if [ -e "$$PTM_RUN/slurm/stop-$$SLURM_JOB_ID" ]; then exit 0; fi
"""

_JOIN = """\

# An agent on every node runs its processes. A job that only brings a node to another one has nothing else to do.
agents() {
    $agents
}
if [ -n "$${PTM_JOIN:-}" ]; then agents; exit; fi
"""

_SUCCESSOR = """\

# If the first node of this job breaks, its agents on the others send it back to the queue. If this script is killed,
# or Slurm gives the job up, its successor goes on.
if [ -n "$${PTM_AFTER:-}" ]; then
    case "$$(squeue -h -j "$$PTM_AFTER" -t all -o '%T %r' 2>/dev/null)" in
        NODE_FAIL*|TIMEOUT*|*JobLaunchFailure*|*NodeFail*|*RaisedSignal*|'') ;;
        *) echo "job $$PTM_AFTER ended by itself: nothing to do"; exit 0 ;;
    esac
    scontrol update jobid="$$SLURM_JOB_ID" comment=$comment
    note submit ', "after": '"$$PTM_AFTER"', "nodes": [$least, $most], "processes_per_node": $each'
    if [ -e "$$PTM_RUN/slurm/stop-$$PTM_AFTER" ]; then exit 0; fi
fi
SUCCESSOR=$$(PTM_AFTER=$$SLURM_JOB_ID sbatch --parsable --dependency=afternotok:"$$SLURM_JOB_ID" \\
    --kill-on-invalid-dep=yes --comment=$successor_comment "$$PTM_RUN/slurm/job.sh")
trap 'scancel $$SUCCESSOR $$JOINERS 2>/dev/null' EXIT
"""

_RUN = """\

FIRST=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
ADDRESS=$$(scontrol show node "$$FIRST" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
# Agents find the coordinator in the run directory. Those who do not see it tell it so at this address.
$requeue_variable
export PTM_COORDINATOR="$${ADDRESS:-$$FIRST}:$$((20000 + SLURM_JOB_ID % 10000))"
newest() { find "$$PTM_RUN/checkpoints" -maxdepth 1 -name 'step-*' | sort | tail -n 1; }
BEFORE=$$(newest)
rm -f "$$PTM_RUN"/logs/outcome.json "$$PTM_RUN"/logs/coordinator.json
if [ -n "$$SIGNAL" ]; then echo "the signal came before the run began"; exit 1; fi

# The coordinator decides which nodes compute what, and starts them again after a failure.
$coordinator --nodes $least:$most --expect "$$SLURM_JOB_NUM_NODES" &
COORDINATOR=$$!
agents &
AGENTS=$$!
JOINERS=
"""

_WATCH = """\
# A signal ends wait, but not the coordinator. Without agents it would wait for them in vain.
SECONDS=0
GONE=0
while kill -0 "$$COORDINATOR" 2>/dev/null; do
    sleep 1 &
    wait $$!
    if kill -0 "$$AGENTS" 2>/dev/null || [ -n "$$JOINERS" ]; then GONE=0; else GONE=$$((GONE + 1)); fi
    if [ "$$GONE" = 10 ]; then echo "all agents have ended"; kill -TERM "$$COORDINATOR"; fi
$grow
done
wait "$$COORDINATOR"
CODE=$$?
"""

_GROW = """\
    # A node that broke does not come back into this job: a job of its own brings another one, when there is one.
    if [ "$$SECONDS" -lt $grow_seconds ]; then continue; fi
    SECONDS=0
    HAVE=$$(squeue -h -j "$$SLURM_JOB_ID" -o %D)
    COMING=$$([ -z "$$JOINERS" ] || squeue -h -j "$$(echo $$JOINERS | tr ' ' ,)" -o %i 2>/dev/null | wc -l)
    if [ -n "$$HAVE" ] && [ $$((HAVE + $${COMING:-0})) -lt $most ]; then
        TAKEN=$$(squeue -h -j "$$(echo $$SLURM_JOB_ID $$JOINERS | tr ' ' ,)" -o %N 2>/dev/null | paste -sd, -)
        JOINER=$$(PTM_JOIN=1 sbatch --parsable --nodes=1 --exclude="$$TAKEN" --comment=$joiner_comment --no-requeue \\
            "$$PTM_RUN/slurm/job.sh") || continue
        JOINERS="$$JOINERS $$JOINER"
        echo "$$(date +%T) job $$JOINER is to bring a node"
    fi"""

_ENDING = """\
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$$AGENTS" 2>/dev/null || break; sleep 0.5; done

# A run that a signal stopped goes back to the queue, unless `ptm stop` or scancel sent it, and so does one that has
# too few nodes.
if [ "$$SIGNAL" = TERM ] || [ -e "$$PTM_RUN/slurm/stop-$$SLURM_JOB_ID" ]; then exit "$$CODE"; fi
if [ "$$CODE" != $requeue_code ]; then
    if ! grep -qs '"stop_reason": "SIG' "$$PTM_RUN/logs/outcome.json" && [ "$$SIGNAL" != USR1 ]; then exit "$$CODE"; fi
    if grep -qs '"stop_reason": null' "$$PTM_RUN/logs/outcome.json"; then exit "$$CODE"; fi
    if [ "$$(newest)" = "$$BEFORE" ]; then
        echo "no step was saved in this life: give it more time, or more seconds between signal and limit"
        exit 1
    fi
fi
$requeue
"""

_REQUEUE = """\
note requeue
echo "$(date +%T) not finished: back to the queue"
trap '' TERM
scontrol requeue "$SLURM_JOB_ID"
# Nodes that were found to be bad are not wanted again; Slurm takes that only from a job that waits.
BAD=$(sort -u "$PTM_RUN/slurm/bad-nodes" 2>/dev/null | paste -sd, -)
[ -z "$BAD" ] || for _ in 1 2 3 4 5 6 7 8 9 10; do
    scontrol update jobid="$SLURM_JOB_ID" ExcNodeList="$BAD" 2>/dev/null && break
    sleep 0.3
done"""


_LET_GO = "scancel $SUCCESSOR $JOINERS\n"


@dataclass(frozen=True)
class JobScript:
    """A job, in the words of the user.

    Attributes:
        name: of the run.
        run: absolute run directory.
        work: absolute folder from which relative paths of the recipe count.
        recipe: absolute file with the resolved recipe.
        nodes: least and most nodes to compute on.
        profile: the cluster.
        python: of every process, in the container if there is one.
    """

    name: str
    run: Path
    work: Path
    recipe: Path
    nodes: tuple[int, int]
    profile: ClusterProfile
    python: str

    @property
    def is_elastic(self) -> bool:
        """Whether the job outlives the loss of a node."""
        least, most = self.nodes
        return self.profile.no_kill if self.profile.no_kill is not None else least < most

    def text(self) -> str:
        """The script that sbatch takes."""
        least, most = self.nodes
        values = {
            "run": shlex.quote(str(self.run)),
            "agents": " \\\n        ".join(self._agents()),
            "coordinator": " \\\n    ".join(self._coordinator()),
            "least": str(least),
            "most": str(most),
            "each": str(self.profile.processes_per_node),
            "grow_seconds": str(self.profile.grow_seconds),
            "comment": _quoted(f"{COMMENT_PREFIX}{self.run}"),
            "successor_comment": _quoted(f"{SUCCESSOR_PREFIX}{self.run}"),
            "joiner_comment": _quoted(f"{JOINER_PREFIX}{self.run}"),
            "requeue_code": str(REQUEUE_CODE),
            "requeue_variable": "export PTM_REQUEUE=1" if self.profile.requeue else "export PTM_REQUEUE=",
            "requeue": (_LET_GO if self.is_elastic else "") + _REQUEUE if self.profile.requeue else 'exit "$CODE"',
        }
        options = "".join(f"#SBATCH {option}\n" for option in self._options())
        before = Template(_HEAD + _SIGNALS).substitute(values)
        values["grow"] = Template(_GROW).substitute(values) if self.is_elastic else ""
        parts = [_JOIN, *([_SUCCESSOR] if self.is_elastic else []), _RUN, _WATCH, _ENDING]
        after = Template("".join(parts)).substitute(values).replace("\n\ndone", "\ndone")
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
        if self.is_elastic:
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

    def _agents(self) -> Iterator[str]:
        each = self.profile.processes_per_node
        yield 'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none'
        # An agent has the cores of all its processes; sbatch's own number is not passed on since Slurm 22.05.
        cores = [] if self.profile.cpus_per_task is None else [f"--cpus-per-task={each * self.profile.cpus_per_task}"]
        yield " ".join(["--kill-on-bad-exit=0", *(["--no-kill"] if self.is_elastic else []), *cores])
        logs = shlex.quote(str(self.run / "logs"))
        yield from self._in_container(
            f"{shlex.quote(self.python)} -m launcher.elastic.keeper {logs} --processes {each} --examine"
        )

    def _coordinator(self) -> Iterator[str]:
        command = f"{shlex.quote(self.python)} -m launcher.slurm.coordinate {shlex.quote(str(self.recipe))}"
        if self.profile.container is not None and self.profile.container.kind == "pyxis":
            yield "srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --relative=0 --cpu-bind=none"
        yield from self._in_container(command)

    def _in_container(self, command: str) -> Iterator[str]:
        """A command in the image; with pyxis these are options of the srun before it."""
        profile, container = self.profile, self.profile.container
        if container is None:
            yield command
        elif container.kind == "pyxis":
            yield f"--container-image={shlex.quote(container.image)}"
            if container.mounts:
                yield f"--container-mounts={shlex.quote(','.join(container.mounts))}"
            yield f"--container-workdir={shlex.quote(str(self.work))}"
            yield from container.options
            yield command
        else:
            gpus = ["--nv"] if profile.gpus_per_node is not None else []
            binds = [f"--bind {shlex.quote(mount)}" for mount in container.mounts]
            yield " ".join(["apptainer exec", *gpus, *binds, f"--pwd {shlex.quote(str(self.work))}"])
            yield from container.options
            yield shlex.quote(container.image)
            yield command


def _quoted(value: str) -> str:
    """A value as sbatch reads it in a line of options."""
    return shlex.quote(value)
