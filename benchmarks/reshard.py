"""A checkpoint of 1.3 billion parameters, cut anew for another layout and loaded by one rank of it: memory and time.

``python -m benchmarks.reshard`` needs 32 GB of disk and the memory of one rank, writes figures to
benchmarks/results/reshard.json, and removes what it made. Every part runs in a process of its own, whose largest
resident set is told; files are dropped from the page cache before they are read.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.manifest import describe
from benchmarks.timing import save
from ptm_dist.checkpoint.compare import compare
from ptm_dist.checkpoint.layout_boxes import boxes_of_layout
from ptm_dist.checkpoint.plan import LazyShard
from ptm_dist.checkpoint.reshard import reshard
from ptm_dist.checkpoint.state import load_state
from ptm_dist.checkpoint.store import CheckpointStore, latest
from ptm_dist.models import model_spec, parameter_shapes
from ptm_dist.models.initialization import fill_initial
from ptm_dist.parallel.control import ALONE
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.loading import load_recipe

RANKS = 4
LAYOUT = ["layout.tensor_parallel=2", "layout.zero_stage=1", "layout.data_parallel=2"]
SLOTS = ("exp_avg", "exp_avg_sq")


def create(path: Path, folder: Path) -> int:
    """Write the checkpoint of one process, tensor by tensor; bytes of its values."""
    recipe = load_recipe(path)
    spec, state = model_spec(recipe.model), {}

    def initial(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.empty(shape)
        fill_initial(name, values, shape, (0,) * len(shape), spec, recipe.training.seed)
        return values

    for name, shape in parameter_shapes(recipe.model).items():
        like, offset = torch.empty(shape, device="meta"), (0,) * len(shape)
        state[f"model.{name}"] = LazyShard(like, shape, offset, partial(initial, name, shape))
        for slot in SLOTS:
            state[f"optimizer.{name}.{slot}"] = LazyShard(like, shape, offset, partial(torch.rand, shape))
    CheckpointStore(folder, ALONE).save(state, describe(recipe, 1, recipe.training.global_batch_size))
    return sum(4 * math.prod(box.global_shape) for box in state.values())


def cut(path: Path, source: Path, out: Path) -> int:
    """What `ptm checkpoint reshard` does; bytes of the files that are written."""
    done = reshard(source, out, load_recipe(path, LAYOUT), RANKS)
    return sum(file.stat().st_size for file in done.checkpoint.iterdir())


def load_one_rank(path: Path, checkpoint: Path) -> int:
    """Load what the last rank holds, without the others; bytes that it holds."""
    recipe = load_recipe(path, LAYOUT)
    shapes, state = parameter_shapes(recipe.model), {}
    held = boxes_of_layout(recipe.model, resolve_layout(recipe.layout, RANKS), RANKS - 1)
    for name, (offset, shape) in held.items():
        for key in (f"model.{name}", *(f"optimizer.{name}.{slot}" for slot in SLOTS)):
            state[key] = LocalShard(torch.empty(shape), shapes[name], offset)
    load_state(state, checkpoint, ALONE)
    return sum(4 * box.local.numel() for box in state.values())


def prove_equal(a: Path, b: Path) -> int:
    """What `ptm checkpoint diff` does; bytes of the files that were compared."""
    one, other = latest(a), latest(b)
    assert one is not None and other is not None and compare(one, other).is_equal
    return sum(file.stat().st_size for info in (one, other) for file in info.path.iterdir())


def _own(part: Callable[[], int], results: multiprocessing.Queue[tuple[int, float, int, int]]) -> None:
    torch.set_num_threads(1)
    before, start = _bytes_read(), time.perf_counter()
    value = part()
    seconds, read = time.perf_counter() - start, _bytes_read() - before
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    results.put((value, seconds, read, 1024 * int(peak.split()[1])))


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def _forget(folder: Path) -> None:
    """Drop files from the page cache."""
    for path in folder.rglob("*.distcp"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(name: str, part: Callable[[], int], *reads: Path) -> dict[str, float]:
    """Run a part in a new process; what it says of itself in GB, and what it took."""
    for folder in reads:
        _forget(folder)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_own, args=(part, results))
    process.start()
    value, seconds, read, peak = results.get()
    process.join()
    figures = {"GB": value / 1e9, "GB read": read / 1e9, "seconds": seconds, "peak RSS, MB": peak / 1e6}
    print(f"{name}: " + ", ".join(f"{key} {figure:,.1f}" for key, figure in figures.items()), flush=True)
    return {key: round(figure, 2) for key, figure in figures.items()}


def main() -> None:
    """Make, cut, load, compare, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-reshard"), help="folder to make and to remove")
    parser.add_argument("--recipe", type=Path, default=Path("configs/gpt/gpt3-1.3b.yaml"))
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    source, out = options.work / "one", options.work / "for-4"
    recipe, step = options.recipe, "step-00000001"
    try:
        figures: dict[str, object] = {
            "nothing but imports": measure("nothing but imports", int),
            "create": measure("create", partial(create, recipe, source)),
            "reshard": measure("reshard", partial(cut, recipe, source / step, out), source),
            "load of one rank of 4, from one file": measure(
                "load of one rank of 4, from one file", partial(load_one_rank, recipe, source / step), source
            ),
            "load of one rank of 4, from files cut for it": measure(
                "load of one rank of 4, from files cut for it",
                partial(load_one_rank, recipe, out / "checkpoints" / step),
                out,
            ),
            "compare": measure("compare", partial(prove_equal, source, out / "checkpoints"), source, out),
        }
    finally:
        shutil.rmtree(options.work)
    print(f"figures: {save('reshard', {'recipe': recipe.stem, **figures})}")


if __name__ == "__main__":
    main()
