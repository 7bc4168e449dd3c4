"""What Slurm says of jobs, and what it is told: squeue, scontrol, scancel and sbatch as functions.

Only what Slurm 22.05 and its successors share is used, and nothing that needs an accounting database.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from data_pipeline.errors import UserError

_SECONDS = 60.0
_FIELDS = "%i|%T|%N|%r|%e|%j|%k"
_PAST = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


class SlurmError(UserError):
    """A command of Slurm that is missing, does not answer, or refuses."""


@dataclass(frozen=True)
class Job:
    """A job that Slurm still remembers.

    Attributes:
        id: number of the job.
        state: Slurm's word for it, such as PENDING or RUNNING.
        nodes: its nodes in Slurm's form, empty while it waits.
        reason: why it waits.
        end: when its time limit ends it, in Slurm's words.
        name: of the run.
        comment: what the submitter wrote.
    """

    id: int
    state: str
    nodes: str
    reason: str
    end: str
    name: str
    comment: str

    @property
    def is_alive(self) -> bool:
        """Whether it runs, waits, or is about to end."""
        return self.state not in _PAST

    def describe(self) -> str:
        """One line for people."""
        if self.state == "PENDING":
            return f"job {self.id} is PENDING ({self.reason})"
        return f"job {self.id} is {self.state}" + (f" on {self.nodes}" if self.nodes else "")


def hand_in(script: str) -> int:
    """Give a script to sbatch; returns the number of the job.

    Raises: SlurmError with what sbatch says against it.
    """
    answer = _run(["sbatch", "--parsable"], script).stdout
    return int(answer.strip().split(";")[0])


def hand_in_nothing(script: str) -> str:
    """What sbatch says when a job would start, without handing it in.

    Raises: SlurmError with what sbatch says against it.
    """
    return _run(["sbatch", "--test-only"], script).stderr.strip().removeprefix("sbatch: ")


def refuse_too_much(nodes: int, gpus: int, partition: str | None) -> None:
    """Refuse what no partition, or not the one asked for, ever has: whether nodes are up and free does not matter.

    Args:
        nodes: the least that will do.
        gpus: on each of them.
        partition: None: the cluster's own choice.

    Raises: SlurmError that says what there is.
    """
    where = [f"--partition={partition}"] if partition is not None else []
    answer = _run(["sinfo", "--noheader", "--Node", "--format=%P|%N|%G", *where]).stdout
    rows = [line.strip().split("|") for line in answer.splitlines() if line.count("|") == 2]
    if partition is None and any(name.endswith("*") for name, _, _ in rows):
        rows = [row for row in rows if row[0].endswith("*")]
    fitting = {node for _, node, offer in rows if _gpus(offer) >= gpus}
    if rows and len(fitting) < nodes:
        wanted = f"{nodes} node{'s' if nodes > 1 else ''}" + (f" with {gpus} GPUs" if gpus else "")
        offers = _offers("%P has %D nodes with %c cores, %m MB, GPUs: %G")
        raise SlurmError(f"the cluster has no {wanted}; ask for fewer, or for another partition: {offers}")


def _gpus(offer: str) -> int:
    """GPUs of a node from Slurm's list of generic resources, such as `gpu:a100:4(S:0-1),craynetwork:4`."""
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^,:()]+)?:(\d+)", offer))


def find_job(number: int) -> Job | None:
    """A job, or None if Slurm has forgotten it: minutes after its end."""
    try:
        answer = _run(["squeue", "--noheader", "--states=all", f"--jobs={number}", f"--format={_FIELDS}"]).stdout
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return next((job for job in _parsed(answer) if job.id == number), None)


def my_jobs() -> list[Job]:
    """All waiting and running jobs of this user."""
    return _parsed(_run(["squeue", "--noheader", f"--user={os.getuid()}", f"--format={_FIELDS}"]).stdout)


def restarts(number: int) -> int:
    """How often a job went back to the queue so far; 0 if Slurm has forgotten it."""
    try:
        shown = _run(["scontrol", "--oneliner", "show", "job", str(number)]).stdout
    except SlurmError:
        return 0
    found = re.search(r"\bRestarts=(\d+)", shown)
    return int(found[1]) if found else 0


def signal_script(number: int, name: str) -> None:
    """Send a signal to the script of a job, and to nothing else of it."""
    _run(["scancel", "--batch", f"--signal={name}", str(number)])


def cancel(number: int) -> None:
    """End a job at once, or take it out of the queue."""
    _run(["scancel", str(number)])


def _parsed(answer: str) -> list[Job]:
    rows = [line.split("|", 6) for line in answer.splitlines() if line.count("|") >= 6]
    return [Job(int(number), *rest) for number, *rest in rows if number.isdecimal()]


def _run(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} not found: this must run where Slurm's commands are, on a login node") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} gave no answer in {_SECONDS:.0f} s: ask sinfo whether Slurm is up") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SlurmError(f"{' '.join(command[:2])}: {said}{_advice(said)}")
    return done


def _advice(said: str) -> str:
    """What to do about a refusal that has nothing to do with the run."""
    words = said.lower()
    if "partition" in words:
        return f"; choose one by --partition: {_offers('%P')}"
    if "configuration is not available" in words or "more processors requested" in words or "node count" in words:
        offers = _offers("%P has %D nodes with %c cores, %m MB, GPUs: %G")
        return f"; ask for fewer nodes, or for less of each in the cluster file: {offers}"
    return ""


def _offers(form: str) -> str:
    """What the cluster has, as sinfo says it."""
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader", f"--format={form}"], capture_output=True, text=True, timeout=_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "see sinfo"
    return ", ".join(dict.fromkeys(line.strip() for line in answer.splitlines())) or "see sinfo"
