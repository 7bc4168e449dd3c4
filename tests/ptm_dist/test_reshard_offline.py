"""Checkpoints cut anew in one process: the arithmetic of boxes, the bits, the memory, and what compares them."""

from __future__ import annotations

import math
import multiprocessing
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.compare import compare, tensor_difference
from ptm_dist.checkpoint.contents import Contents
from ptm_dist.checkpoint.layout_boxes import LayoutBoxes, boxes_of_layout
from ptm_dist.checkpoint.reshard import reshard
from ptm_dist.checkpoint.state import load_state
from ptm_dist.checkpoint.store import CheckpointStore, Description, read_checkpoint
from ptm_dist.errors import CheckpointError, LayoutError
from ptm_dist.models import parameter_shapes
from ptm_dist.parallel.control import ALONE, control_group
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.fingerprint import fingerprint, model_fingerprint
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from tests.distributed import run_distributed
from tests.parity.cells import LEARNING_RATE, Cell, Problem, gather, slice_batch
from tests.parity.layouts import DOUBLE
from tests.ptm_dist.recipes import small_recipe

_spawn = multiprocessing.get_context("spawn")
HARD = {family: Problem(family, tied=True, vocab_size=101, num_layers=5) for family in ("gpt2", "albert")}
SETTINGS = {setting.name: setting for setting in DOUBLE if setting.world_size <= 4}


def cell(name: str, family: str = "gpt2") -> Cell:
    return Cell(HARD[family], SETTINGS[name].world_size, SETTINGS[name].layout)


def held_and_predicted(cells: list[Cell]) -> list[bool]:
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    same = []
    for each in cells:
        engine = each.engine()
        held = {name: (shard.offset, tuple(shard.local.shape)) for name, shard in engine.model.shards().items()}
        recipe = each.recipe()
        same.append(boxes_of_layout(recipe.model, resolve_layout(recipe.layout, each.world_size), rank) == held)
        engine.close()
    return same


@pytest.mark.parametrize("family", ["gpt2", "albert"])
def test_the_boxes_of_a_layout_are_those_that_its_engines_hold(family):
    by_world = defaultdict(dict)
    for name, setting in SETTINGS.items():
        if family == "albert" and "PP" not in name:
            continue
        without = ("recompute", "offload", "micro_batch_size", "context_method", "sequence_parallel")
        key = tuple(sorted((k, v) for k, v in setting.layout.items() if not k.startswith(without)))
        by_world[setting.world_size].setdefault(key, name)
    for size, names in by_world.items():
        cells = [cell(name, family) for name in names.values()]
        for rank, same in enumerate(run_distributed(held_and_predicted, size, cells)):
            wrong = [name for name, is_same in zip(names.values(), same, strict=True) if not is_same]
            assert not wrong, f"rank {rank} of {size}"


def description(recipe: Recipe, world_size: int = 1, step: int = 2) -> Description:
    return Description(
        step=step,
        samples=step * recipe.training.global_batch_size,
        recipe=recipe.model_dump(mode="json"),
        recipe_fingerprint=fingerprint(recipe),
        model_fingerprint=model_fingerprint(recipe),
        layout=resolve_layout(recipe.layout, world_size).describe(),
        data_fingerprint="d",
        metrics={"loss": 1.0},
        torch_version=torch.__version__,
        world_size=world_size,
        saved_at="2026-01-01T00:00:00+00:00",
    )


def train_and_save(directory: str, where: Cell) -> dict[str, torch.Tensor]:
    engine = where.engine()
    for step in range(2):
        engine.step(slice_batch(where.problem, step, engine), LEARNING_RATE)
    store = CheckpointStore(Path(directory), control_group())
    store.save(engine.state(), description(where.recipe(), where.world_size))
    return gather(engine.state())


def load_again(directory: str, where: Cell) -> dict[str, torch.Tensor]:
    """The whole state after loading; every box of this rank lies in the files as it is."""
    engine = where.engine()
    load_state(engine.state(), Path(directory), control_group())
    contents = Contents(Path(directory))
    mine = {(name, shard.offset, tuple(shard.local.shape)) for name, shard in engine.state().items()}
    boxes = [box for tensor in contents.tensors.values() for box in tensor.boxes]
    covered = sum(math.prod(box.shape) for box in boxes if (box.name, box.offset, box.shape) in mine)
    assert covered == sum(shard.local.numel() for shard in engine.state().values())
    return gather(engine.state())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    directory = tmp_path_factory.mktemp("saved")
    state = run_distributed(train_and_save, 3, str(directory), cell("ZeRO-3 x3"))[0]
    return directory, state


@pytest.mark.parametrize(
    "target",
    ["one process", "TP 3 (heads 2, 1, 1)", "HSDP 2x2 (ZeRO-3)", "ZeRO-3 x2, TP 2", "PP 2 zbv_zero_bubble, ZeRO-3 x2"],
)
def test_a_checkpoint_cut_for_a_layout_has_the_same_bits_in_the_boxes_of_its_ranks(saved, target, tmp_path):
    source, state = saved
    where = cell(target)
    done = reshard(source, tmp_path / "new", where.recipe(), where.world_size)
    contents = Contents(done.checkpoint)
    assert contents.tensors.keys() == state.keys()
    assert all(torch.equal(contents.read(name), state[name]) for name in state)
    before, after = read_checkpoint(source / "step-00000002"), read_checkpoint(done.checkpoint)
    assert compare(before, after).is_equal
    changed = {"layout", "world_size", "files", "recipe", "checksum"}
    assert before.manifest.model_dump(exclude=changed) == after.manifest.model_dump(exclude=changed)
    assert after.manifest.world_size == where.world_size
    for whole in run_distributed(load_again, where.world_size, str(done.checkpoint), where):
        assert all(torch.equal(whole[name], state[name]) for name in state)
    written = {path.name for path in done.checkpoint.glob("*.distcp")}
    assert written == {f"__{rank}_0.distcp" for rank in range(where.world_size)}
    layout = resolve_layout(where.recipe().layout, where.world_size)
    holders = defaultdict(list)
    for rank in range(where.world_size):
        for name, box in boxes_of_layout(where.recipe().model, layout, rank).items():
            holders[f"model.{name}", *box].append(f"__{rank}_0.distcp")
    for box in (box for name, tensor in contents.tensors.items() if "model." in name for box in tensor.boxes):
        assert box.file in holders[box.name, box.offset, box.shape]


def test_a_layout_that_does_not_fit_writes_nothing(saved, tmp_path):
    recipe = cell("one process").recipe()
    layout = recipe.layout.model_copy(update={"tensor_parallel": 3})
    with pytest.raises(LayoutError, match="tensor_parallel=3 does not divide"):
        reshard(saved[0], tmp_path / "new", recipe.model_copy(update={"layout": layout}), 4)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_not_cut_and_an_existing_folder_not_replaced(saved, tmp_path):
    recipe = cell("one process").recipe()
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        reshard(saved[0], tmp_path / "there", recipe, 1)
    state = {"model.w": LocalShard(torch.ones(5000), (5000,), (0,))}
    info = CheckpointStore(tmp_path / "damaged", ALONE).save(state, description(recipe))
    content = bytearray((info.path / "__0_0.distcp").read_bytes())
    content[10_000] ^= 1
    (info.path / "__0_0.distcp").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"__0_0.distcp is damaged.*model\.w"):
        reshard(info.path, tmp_path / "new", recipe, 1)
    assert not (tmp_path / "new").exists()


def growth_of(directory: str, out: str, recipe: Recipe, results: object) -> None:
    layout = recipe.layout.model_copy(update={"tensor_parallel": 2, "zero_stage": 3})
    recipe = recipe.model_copy(update={"layout": layout})
    LayoutBoxes(recipe.model, resolve_layout(recipe.layout, 4)).of_rank(0)  # what it imports is not counted
    Contents(Path(directory) / "step-00000002").read("model.head.norm.weight")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far: what imports took, and the process before exec
    before = peak_memory()
    reshard(Path(directory), Path(out), recipe, 4)
    growth = peak_memory() - before
    contents = Contents(Path(directory) / "step-00000002")
    everything = [contents.read(name) for name in contents.tensors]
    results.put((growth, peak_memory() - before, len(everything)))


def peak_memory() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def test_memory_holds_a_tensor_or_two_and_never_the_checkpoint(tmp_path):
    recipe = small_recipe(
        model__hidden_size=384, model__num_layers=6, model__vocab_size=512, training__global_batch_size=8
    )
    shapes = parameter_shapes(recipe.model)
    state = {
        key: LocalShard(torch.randn(shape), shape, (0,) * len(shape))
        for name, shape in shapes.items()
        for key in (f"model.{name}", f"optimizer.{name}.exp_avg", f"optimizer.{name}.exp_avg_sq")
    }
    CheckpointStore(tmp_path / "saved", ALONE).save(state, description(recipe))
    total = sum(4 * shard.local.numel() for shard in state.values())
    largest = max(4 * shard.local.numel() for shard in state.values())
    results = _spawn.Queue()
    process = _spawn.Process(target=growth_of, args=(str(tmp_path / "saved"), str(tmp_path / "new"), recipe, results))
    process.start()
    growth, growth_with_all, tensors = results.get(timeout=120)
    process.join()
    assert total > 40 * largest
    assert (tensors, growth_with_all > 0.9 * total) == (len(state), True), "the measure sees a whole checkpoint"
    assert growth < 6 * largest, f"{growth / 2**20:.1f} MiB for tensors of at most {largest / 2**20:.1f} MiB"


def test_tensors_are_compared_to_the_bit_and_by_their_largest_difference():
    a = torch.arange(3_000_000, dtype=torch.float32)
    assert tensor_difference("x", a, a.clone()) is None
    b = a.clone()
    b[5], b[2_900_000] = 5.5, 2_900_001
    found = tensor_difference("x", a, b)
    assert (found.elements, found.absolute, found.relative) == (2, 1.0, pytest.approx(0.5 / 5.5))
    reference = (a.double() - b.double()).abs().max().item()
    assert found.absolute == reference


def test_what_is_not_a_number_differs_from_numbers_alone():
    nan = torch.tensor([math.nan, 1.0, math.inf])
    assert tensor_difference("x", nan, nan.clone()) is None
    found = tensor_difference("x", nan, torch.tensor([0.0, 1.0, math.inf]))
    assert (found.elements, found.absolute, found.relative) == (1, math.inf, math.inf)


def test_a_comparison_names_recipe_progress_and_tensors(tmp_path):
    one = small_recipe()
    other = small_recipe(optimizer__learning_rate=2e-3)

    def save(name: str, recipe: Recipe, step: int, **tensors: torch.Tensor):
        state = {key: LocalShard(value, tuple(value.shape), (0,) * value.dim()) for key, value in tensors.items()}
        return CheckpointStore(tmp_path / name, ALONE).save(state, description(recipe, step=step))

    values = {"same": torch.ones(3), "moved": torch.ones(2), "other": torch.ones(2), "wide": torch.ones(2)}
    a = save("a", one, 2, **values, gone=torch.ones(1))
    changed = {"moved": torch.tensor([1.0, 3.0]), "other": torch.ones(3), "wide": torch.ones(2).double()}
    b = save("b", other, 3, **{**values, **changed}, new=torch.ones(1))
    found = compare(a, b)
    assert found.recipe == ("optimizer.learning_rate: 0.001 -> 0.002",)
    assert found.progress == ("step: 2 -> 3", "samples: 16 -> 24")
    assert (found.only_in_a, found.only_in_b, found.equal_tensors) == (("gone",), ("new",), 1)
    assert [text.split(":")[0] for text in found.other_shapes] == ["other", "wide"]
    ((name, elements, absolute, relative),) = [(t.name, t.elements, t.absolute, t.relative) for t in found.tensors]
    assert (name, elements, absolute, relative) == ("moved", 1, 2.0, pytest.approx(2 / 3))
    assert compare(a, a).is_equal
