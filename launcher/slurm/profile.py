"""What a cluster is like: `configs/cluster/*.yaml`, written once for each cluster and used by every run."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from data_pipeline.errors import UserError
from ptm_dist.errors import RecipeError
from ptm_dist.recipe.schema import Section
from ptm_dist.recipe.source import Entry, merge, read_tree

_TIME = r"^(UNLIMITED|\d+|\d+:\d{2}(:\d{2})?|\d+-\d+(:\d{2}){0,2})$"
_LONGEST_WARNING = 65535


class ProfileError(UserError):
    """A cluster profile that cannot be read, or whose values contradict each other."""


class ContainerSection(Section):
    """The image that every process of a run lives in."""

    kind: Literal["pyxis", "apptainer"]
    """pyxis: options of srun that its plugin understands. apptainer: `apptainer exec` in front of every process."""
    image: str
    """File, or address that the program understands; ptm-dist is installed in it."""
    mounts: tuple[str, ...] = ()
    """`place` or `place:place in the image`; the run directory and the data must be among them."""
    options: tuple[str, ...] = ()
    """More options: of srun for pyxis, of `apptainer exec` for apptainer."""


class ClusterProfile(Section):
    """What jobs on one cluster have in common."""

    partition: str | None = None
    """Left out: the cluster's own choice."""
    account: str | None = None
    """Who pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    time: str | None = Field(default=None, pattern=_TIME)
    """Time limit of one life of a job, such as 24:00:00 or 2-00; a run may need many lives."""
    gpus_per_node: PositiveInt | None = None
    """GPUs to ask for on every node; each gets a process."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How they are asked for: --gpus-per-node=8, or --gres=gpu:8 on older clusters."""
    tasks_per_node: PositiveInt | None = None
    """Processes on every node of a cluster without GPUs."""
    cpus_per_task: PositiveInt | None = None
    """CPU cores of each process."""
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Memory of every node, such as 480G; 0: all of it."""
    exclusive: bool = False
    """Share nodes with nobody."""
    signal_seconds: int = Field(default=120, ge=1, le=_LONGEST_WARNING)
    """How long before the time limit the run saves and leaves: more than a step and a checkpoint take, twice."""
    requeue: bool = True
    """A run that time, preemption or a broken node interrupted goes back to the queue by itself."""
    no_kill: bool | None = None
    """A job goes on with its other nodes when one breaks; left out: if it was given a range of nodes."""
    grow_seconds: PositiveInt = 300
    """How often a job that keeps its other nodes asks for another one in place of one that broke."""
    options: tuple[str, ...] = ()
    """More options of sbatch, such as --switches=1."""
    setup: tuple[str, ...] = ()
    """Shell commands before the run, such as `module load cuda`; the job ends if one of them fails."""
    variables: Mapping[str, str] = {}
    """Environment variables of all processes, such as those of NCCL."""
    container: ContainerSection | None = None
    """Image to run in."""
    python: str | None = None
    """Python that has ptm-dist; left out: the one that submits, in a container `python`."""

    @property
    def processes_per_node(self) -> int:
        """Processes that run on every node."""
        return self.gpus_per_node or self.tasks_per_node or 1

    @field_validator("options")
    @classmethod
    def _are_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not re.fullmatch(r"--?[A-Za-z][^\n]*", option):
                raise ValueError("options of sbatch begin with - and fill one line")
        return options

    @field_validator("variables")
    @classmethod
    def _are_names(cls, variables: Mapping[str, str]) -> Mapping[str, str]:
        for name in variables:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return variables

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.gpus_per_node is not None and self.tasks_per_node is not None:
            raise ValueError("gpus_per_node says how many processes there are; leave out tasks_per_node")
        return self


def load_profile(path: Path, changes: Mapping[str, str | None]) -> ClusterProfile:
    """Read a profile.

    Args:
        path: YAML file, which may name others by `base:`, as recipes do.
        changes: values that win over the file's; None leaves the file's.

    Raises: ProfileError: one message with every problem, each with file and line.
    """
    try:
        tree = read_tree(path)
    except FileNotFoundError:
        raise ProfileError(
            f"{path}: no such cluster profile (looked in {Path.cwd()}); copy one of configs/cluster/ and change it"
        ) from None
    except RecipeError as error:
        raise ProfileError(str(error)) from None
    given = {key: Entry(value, f"option --{key}") for key, value in changes.items() if value is not None}
    tree = merge(tree, Entry(given, tree.place), keep_place=True)
    try:
        return ClusterProfile.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        raise ProfileError("\n".join(_sentence(tree, detail) for detail in error.errors(include_url=False))) from None


def _sentence(tree: Entry, detail: Any) -> str:
    """A problem that pydantic found, with the place where the value was written."""
    location = tuple(detail["loc"])
    key = ".".join(map(str, location))
    entry = tree.find(location)
    if detail["type"] == "extra_forbidden":
        section = ContainerSection if location[0] == "container" else ClusterProfile
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{entry.place}: unknown key {key}; {hint}(known keys: {', '.join(known)})"
    if detail["type"] == "missing":
        return f"{entry.place}: missing key {key}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{entry.place}: {key} is {entry.plain()!r}; {message}" if key else f"{entry.place}: {message}"
