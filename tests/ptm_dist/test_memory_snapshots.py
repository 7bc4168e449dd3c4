"""Restarts from the memory of the nodes: real runs that are killed, with two nodes that are folders of one machine."""

from __future__ import annotations

import re
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.memory import peer_of, snapshot_folder
from ptm_dist.recipe.report import dry_run_report
from ptm_dist.training.run import run
from ptm_dist.training.world import World
from tests.ptm_dist.runs import (
    _context,
    events,
    kill_when,
    losses,
    make_recipe,
    run_alone,
    validation_losses,
    weights,
    write_data,
)

ZERO3 = {"zero_stage": 3, "micro_batch_size": 2}
TENSOR = {"tensor_parallel": 2, "sequence_parallel": True, "micro_batch_size": 3}
STEPS = 40


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "data")
    (tmp_path / "memory").mkdir()
    return tmp_path


def recipe_of(folder: Path, name: str, layout, **checkpoint):
    """A checkpoint at step 10, and snapshots of every second step in a folder that stands for memory."""
    keys = {"every": 10, "memory_every": 2, "memory_dir": str(folder / "memory"), "keep_last": 9, **checkpoint}
    return make_recipe(folder, name, layout=layout, training={"steps": STEPS}, checkpoint=keys)


def start(recipe, nodes: list[str]):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank, node in enumerate(nodes):
        world = World(rank, len(nodes), rank, len(nodes), "127.0.0.1", port, "local", node)
        processes.append(_context.Process(target=work, args=(recipe, world), daemon=True))
        processes[-1].start()
    return processes


def work(recipe, world) -> None:
    torch.set_num_threads(1)
    run(recipe, world)


def finish(recipe, nodes: list[str]) -> None:
    processes = start(recipe, nodes)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(nodes)


def kill_after(recipe, nodes: list[str], step: int) -> None:
    """Kill all processes at once when a step is done."""
    assert kill_when(start(recipe, nodes), lambda: len(losses(recipe)) >= step)


def resumed(recipe) -> list[tuple[str, int]]:
    return [(event["source"], event["step"]) for event in events(recipe, "resume")]


def same(first, second) -> bool:
    return all(torch.equal(weights(first)[name], tensor) for name, tensor in weights(second).items())


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """The undisturbed run."""
    folder = tmp_path_factory.mktemp("through")
    write_data(folder / "data")
    recipe = recipe_of(folder, "through", ZERO3, memory_every=0)
    finish(recipe, ["n0", "n1"])
    return recipe


@pytest.mark.parametrize("lost", [None, "n0", "n1"])
def test_a_run_goes_on_from_memory_with_the_same_bits_whichever_node_is_lost(folder, through, lost):
    recipe = recipe_of(folder, "killed", ZERO3)
    kill_after(recipe, ["n0", "n1"], 17)
    if lost is not None:
        shutil.rmtree(snapshot_folder(folder / "memory", recipe.directory, lost))
    finish(recipe, ["n0", "n1"])
    ((source, step),) = resumed(recipe)
    assert source == "memory"
    assert 12 <= step <= 18
    assert losses(recipe) == losses(through)
    assert validation_losses(recipe) == validation_losses(through)
    assert same(recipe, through)
    assert list((folder / "memory").iterdir()) == []


def test_memory_of_both_nodes_lost_means_the_last_checkpoint(folder, through):
    recipe = recipe_of(folder, "killed", ZERO3)
    kill_after(recipe, ["n0", "n1"], 17)
    shutil.rmtree(folder / "memory")
    (folder / "memory").mkdir()
    finish(recipe, ["n0", "n1"])
    assert resumed(recipe) == [("disk", 10)]
    assert same(recipe, through)


def test_a_lost_node_leaves_the_other_to_go_on_at_another_layout(folder):
    single = recipe_of(folder, "single", {"micro_batch_size": 2}, memory_every=0)
    run_alone(single)
    recipe = recipe_of(folder, "killed", ZERO3)
    kill_after(recipe, ["n0", "n1", "n1"], 17)
    shutil.rmtree(snapshot_folder(folder / "memory", recipe.directory, "n0"))
    finish(recipe_of(folder, "killed", TENSOR), ["n1", "n2"])
    ((source, step),) = resumed(recipe)
    assert source == "memory"
    assert 12 <= step <= 18
    # Float64 sums in another order.
    assert losses(recipe) == pytest.approx(losses(single), rel=1e-12)


def test_a_damaged_copy_is_named_and_the_one_on_the_other_node_is_used(folder, through):
    recipe = recipe_of(folder, "killed", ZERO3)
    kill_after(recipe, ["n0", "n1"], 17)
    node = snapshot_folder(folder / "memory", recipe.directory, "n0")
    for path in [path for path in node.iterdir() if not path.name.endswith(".json")]:
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    finish(recipe, ["n0", "n1"])
    assert [source for source, _ in resumed(recipe)] == ["memory"]
    assert "is damaged" in events(recipe, "damaged_snapshot")[0]["problem"]
    assert same(recipe, through)


def test_a_run_alone_on_its_machine_is_killed_again_and_again_and_goes_on_from_memory(folder):
    plain = recipe_of(folder, "plain", {"micro_batch_size": 2}, memory_every=0)
    run_alone(plain)
    recipe = recipe_of(folder, "killed", {"micro_batch_size": 2}, every=0, memory_every=1)
    snapshots = snapshot_folder(folder / "memory", recipe.directory, "n0")
    for step in (5, 9, 14, 20, 21, 30):
        before, earlier = len(events(recipe, "first_step")), set(snapshots.glob("*.json"))

        def is_going(step=step, before=before, earlier=earlier) -> bool:
            has_stepped = len(events(recipe, "first_step")) > before and len(losses(recipe)) >= step
            return has_stepped and not set(snapshots.glob("*.json")) <= earlier

        assert kill_when(start(recipe, ["n0"]), is_going)
        assert not (recipe.directory / "checkpoints" / "step-00000040").exists()
    finish(recipe, ["n0"])
    assert [source for source, _ in resumed(recipe)] == ["memory"] * 6
    steps = [step for _, step in resumed(recipe)]
    assert steps == sorted(steps)
    assert losses(recipe) == losses(plain)
    assert same(recipe, plain)


def test_the_second_copy_is_on_the_next_node():
    assert peer_of(0, ["a"]) is None
    assert [peer_of(rank, ["a", "a", "b", "b"]) for rank in range(4)] == [2, 3, 0, 1]
    assert [peer_of(rank, ["a", "a", "b"]) for rank in range(3)] == [2, 2, 0]
    assert [peer_of(rank, ["a", "b", "c"]) for rank in range(3)] == [1, 2, 0]


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_memory_is_bounded_by_two_copies_here_and_two_of_a_peer(folder):
    recipe = recipe_of(folder, "run", ZERO3)
    largest, is_values = [0, 0], re.compile(r"[0-9a-f]{8}-[01]-[01]$")
    stated = dry_run_report(recipe, 2).host
    processes = start(recipe, ["n0", "n1"])
    while any(process.exitcode is None for process in processes):
        for number, node in enumerate(("n0", "n1")):
            paths = snapshot_folder(folder / "memory", recipe.directory, node).glob("*")
            largest[number] = max(largest[number], sum(size_of(path) for path in paths if is_values.match(path.name)))
        time.sleep(0.01)
    assert [process.exitcode for process in processes] == [0, 0]
    # Boxes of a few numbers are filled up to 64 bytes each.
    assert largest == pytest.approx([stated.snapshots + stated.received] * 2, rel=0.1)
    assert list((folder / "memory").iterdir()) == []
