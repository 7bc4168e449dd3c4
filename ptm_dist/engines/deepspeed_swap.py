"""State that DeepSpeed keeps in files of a fast disk between its uses (ZeRO-Infinity, arXiv 2104.07857).

It reads and writes them past the operating system's memory (O_DIRECT); for checkpoints they are mapped into memory,
page by page as values are asked for, so that no rank ever holds all of its state.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ptm_dist.errors import RecipeError
from ptm_dist.recipe.schema import Recipe

_BLOCK = 4096


def prepare_swapping(recipe: Recipe, rank: int) -> Path:
    """An empty folder `<nvme_path>/<run>/rank<rank>` for this rank's files; collective over the default group.

    Files of an earlier life of the run, which was killed, are removed. Runs are told apart by their directories.

    Raises: RecipeError if the folder cannot serve, or if DeepSpeed's operation for files cannot be built.
    """
    path = recipe.deepspeed.nvme_path
    assert path is not None
    if not path.is_dir():
        raise RecipeError(
            f"deepspeed.nvme_path={path} is no folder of this machine; make it, name another one, or use cpu"
        )
    _require_async_io()
    digest = hashlib.sha256(str(recipe.directory.resolve()).encode()).hexdigest()
    run = path / f"{recipe.name}-{digest[:8]}"
    folder = run / f"rank{rank}"
    shutil.rmtree(run, ignore_errors=True)
    dist.barrier()
    try:
        folder.mkdir(parents=True)
        _try_direct_write(folder / "probe")
    except OSError as error:
        raise RecipeError(
            f"deepspeed.nvme_path={path} cannot be written with O_DIRECT ({error}); name a folder on a local disk, or "
            "use cpu"
        ) from None
    return folder


def remove_swap_folder(folder: Path) -> None:
    """Remove a rank's files, and the run's folder with its last rank's."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


class MappedFiles:
    """Files of swapped tensors as tensors whose values are read from the disk and written to it.

    Args:
        wrapper: DeepSpeed's optimizer, of whatever stage.
    """

    def __init__(self, wrapper: Any) -> None:
        swapper = getattr(wrapper, "optimizer_swapper", None)
        infos = swapper.swap_params_info.values() if swapper is not None else ()
        self._places = {id(t.compute_tensor): (t.swap_path, info.numel()) for info in infos for t in info.tensors}
        self._mappings: list[mmap.mmap] = []
        self._tensors: dict[str, Tensor] = {}

    def values_of(self, tensor: Tensor) -> Tensor:
        """The float32 values of a tensor, ``[n]`` where it is swapped out; writing to them writes to its file."""
        if id(tensor) not in self._places:
            return tensor
        path, numel = self._places[id(tensor)]
        if path not in self._tensors:
            with Path(path).open("r+b") as file:
                mapping = mmap.mmap(file.fileno(), 0)
            self._mappings.append(mapping)
            self._tensors[path] = torch.frombuffer(mapping, dtype=torch.float32, count=numel)
        return self._tensors[path]

    def flush(self) -> None:
        """Bring what was written to the disk, where DeepSpeed reads it."""
        for mapping in self._mappings:
            mapping.flush()


@contextmanager
def in_memory(wrapper: Any, flat: Tensor, write: bool = False) -> Iterator[None]:
    """Have a flat partition and its optimizer state in memory, swapped in if it is swapped out.

    Args:
        wrapper: DeepSpeed's optimizer, of whatever stage.
        flat: one of the tensors that the torch optimizer updates.
        write: bring them back to the disk in the end.
    """
    flats = getattr(wrapper, "fp32_partitioned_groups_flat", ()) if getattr(wrapper, "swap_optimizer", False) else ()
    group = next((number for number, one in enumerate(flats) if one is flat), None)
    if group is None or not wrapper._swappable_optimizer_subgroup(group):
        yield
        return
    wrapper._optimizer_states_and_gradient_swap_in(group)
    yield
    if write:
        wrapper._optimizer_states_and_gradient_swap_out(group)
    else:
        wrapper._release_swap_buffers(group)


def finish_gradients(wrapper: Any) -> None:
    """Write gradients of a step that is left out: else they could overtake, on their way, those of the next."""
    if getattr(wrapper, "optimizer_swapper", None) is not None:
        wrapper.optimizer_swapper.flush_gradients()


def _require_async_io() -> None:
    """Build and load the operation; all ranks of a machine wait for the one that builds.

    Raises: RecipeError if it cannot be built.
    """
    builder = import_module("deepspeed.ops.op_builder").AsyncIOBuilder()
    try:
        with _own_programs_first():
            builder.load(verbose=False)
    except (RuntimeError, OSError, ImportError, CalledProcessError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"offload to nvme: DeepSpeed cannot build its operation async_io ({reason}); install a C++ compiler, ninja "
            "and libaio (apt-get install g++ ninja-build libaio-dev), or use cpu"
        ) from None


@contextmanager
def _own_programs_first() -> Iterator[None]:
    """Ninja of this environment before the system's: another version would build everything again."""
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    try:
        yield
    finally:
        os.environ["PATH"] = path


def _try_direct_write(path: Path) -> None:
    # O_DIRECT wants memory at the start of a page, as an anonymous mapping has it.
    with mmap.mmap(-1, _BLOCK) as block:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        try:
            os.write(file, block)
        finally:
            os.close(file)
    path.unlink()
