"""Small real runs for tests: random token shards, a tiny model, and ways to start, kill and compare them."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.shards import TokenizedDocument, TokenizerIdentity, token_dtype, write_manifest, write_shard
from ptm_dist.checkpoint import load_model
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.metrics import read_rows
from ptm_dist.training.run import RunSummary, run
from ptm_dist.training.world import World
from tests import distributed  # noqa: F401  its list of preloaded modules comes first

VOCAB = 67
SPECIAL_IDS = {"end_of_document": 0, "pad": 1, "classify": 62, "separator": 63, "mask": 64, "unknown": 65}
_context = multiprocessing.get_context("forkserver")
# The server of tests.distributed, which must know this module too for runs to start in a blink.
_context.set_forkserver_preload(
    ["torch", "torch.distributed.fsdp", "ptm_dist.engines", "tests.distributed", "tests.ptm_dist.runs"]
)


def write_data(path: Path, seed: int = 0, tokenizer: TokenizerIdentity | None = None, shards: int = 1) -> Path:
    rng = np.random.default_rng(seed)
    identity = tokenizer or TokenizerIdentity("0" * 64, VOCAB, SPECIAL_IDS)
    for name, count in (("train", 40), ("validation", 3)):
        documents = []
        for _ in range(count):
            tokens = np.append(rng.integers(2, VOCAB // 3, size=rng.integers(20, 60)), 0)
            words = np.arange(tokens.size) % 2 == 0
            documents.append(TokenizedDocument(tokens, np.arange(0, tokens.size - 1, 5, dtype=np.int32), words))
        folder = path / name
        folder.mkdir(parents=True)
        parts = [documents[number :: min(shards, count)] for number in range(min(shards, count))]
        entries = [
            write_shard(folder / f"shard-{number}.tar", f"shard-{number}", part, token_dtype(identity.vocab_size))
            for number, part in enumerate(parts)
        ]
        write_manifest(folder, entries, identity, {})
    return path


def make_recipe(folder: Path, run: str, **sections: dict[str, Any]) -> Recipe:
    """A tiny recipe with data under `folder`; `sections` change single keys of its sections."""
    values: dict[str, Any] = {
        "name": run,
        "run_dir": str(folder / run),
        "model": {
            "vocab_size": VOCAB,
            "max_positions": 16,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
        },
        "data": {
            "path": str(folder / "data"),
            "tokenizer": str(folder / "tokenizer"),
            "sequence_length": 16,
            "max_epochs": 100,
        },
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"warmup_steps": 3},
        "training": {"steps": 12, "global_batch_size": 6, "precision": "fp64", "seed": 7},
        "layout": {"micro_batch_size": 2},
        "evaluation": {"every": 4},
        "checkpoint": {"every": 3, "save_best": False},
        "logging": {"every": 2, "tensorboard": False},
        "launch": {"device": "cpu"},
    }
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes
    return Recipe.model_validate(values)


def run_alone(recipe: Recipe) -> RunSummary:
    return run(recipe, World.single())


def work(recipe: Recipe, world: World) -> None:
    """What a process of a run does."""
    torch.set_num_threads(1)
    run(recipe, world)


def start_run(recipe: Recipe, world_size: int, work: Callable[[Recipe, World], None] = work) -> list[Any]:
    """Start the processes of a run that meets over TCP, as launched ones do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world_size):
        world = World(rank, world_size, rank, world_size, "127.0.0.1", port, "local")
        processes.append(_context.Process(target=work, args=(recipe, world), daemon=True))
        processes[-1].start()
    return processes


def run_processes(recipe: Recipe, world_size: int, timeout: float = 120.0) -> list[int]:
    """Run to the end; the exit codes by rank."""
    processes = start_run(recipe, world_size)
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def kill_when(processes: list[Any], is_time: Callable[[], bool]) -> bool:
    """Kill -9 all processes at once when it is time; False if they ended before."""
    while not is_time():
        if all(process.exitcode is not None for process in processes):
            return False
        time.sleep(0.001)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return True


def losses(recipe: Recipe) -> list[float]:
    rows = [row for row in read_rows(recipe.directory / "metrics.jsonl") if row["kind"] == "train"]
    return [loss for row in rows for loss in row["losses"]]


def validation_losses(recipe: Recipe) -> dict[int, float]:
    rows = read_rows(recipe.directory / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "validation"}


def events(recipe: Recipe, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(recipe.directory / "events.jsonl") if row["event"] == kind]


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_model(recipe.directory)[0].state_dict()
