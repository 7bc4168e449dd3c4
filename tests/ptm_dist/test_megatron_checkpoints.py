"""Checkpoints that Megatron-Core's own code writes and reads, against ours."""

from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.convert.megatron import export_megatron, import_megatron, place_of
from ptm_dist.checkpoint.model import load_model
from ptm_dist.errors import CheckpointError
from ptm_dist.models import parameter_shapes
from ptm_dist.parallel.boxes import boxes_of
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import ModelSection
from tests.distributed import run_distributed
from tests.parity.cells import Cell, Problem

pytest.importorskip("megatron.core")


def cell_of(tied: bool, world_size: int = 1, **layout: int) -> Cell:
    return Cell(Problem(precision="fp32", tied=tied, num_layers=3), world_size, layout)


def in_megatron(cell: Cell, action: str, folder: str) -> dict[str, torch.Tensor]:
    """Save the model that Megatron-Core holds, or load a folder into it; then its tensors by our names."""
    warnings.simplefilter("ignore")
    multiprocessing.current_process()._config["daemon"] = False  # saving starts a process of its own
    from tests.megatron_cpu import cuda_is_cpu

    with cuda_is_cpu():
        from megatron.core import dist_checkpointing

        from ptm_dist.engines.megatron import MegatronEngine
        from ptm_dist.engines.megatron_state import unwrapped

        recipe = cell.recipe()
        engine = MegatronEngine(recipe, resolve_layout(recipe.layout, cell.world_size), torch.device("cpu"))
        model = unwrapped(engine.chunks[0])
        state = model.sharded_state_dict()
        if action == "save":
            dist_checkpointing.save(state, folder)
        else:
            for box in (box for held in engine.state().values() for box in boxes_of(held)):
                box.local.fill_(torch.nan)
            tensors = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
            model.load_state_dict(dist_checkpointing.load(tensors, folder), strict=False)
        held = {name.removeprefix("model."): boxes_of(boxes)[0] for name, boxes in engine.state().items()}
        tensors = {name: box.local.detach().clone() for name, box in held.items() if not name.startswith("optimizer.")}
        engine.close()
        return tensors


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_from_megatron_and_go_back_to_it_bit_by_bit(tmp_path, tied):
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    cell = cell_of(tied)
    saved = run_distributed(in_megatron, 1, cell, "save", str(folder))[0]
    made = import_megatron(folder, tmp_path / "ours", cell.recipe().model)
    assert not made.initial
    model, _ = load_model(made.path)
    ours = dict(model.named_parameters())
    assert ours.keys() == saved.keys()
    assert all(torch.equal(ours[name], saved[name]) for name in ours)

    back = export_megatron(made.path, tmp_path / "theirs")
    loaded = run_distributed(in_megatron, 1, cell, "load", str(back))[0]
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_rows_that_fill_up_a_vocabulary_are_left_behind(tmp_path):
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    split = cell_of(True, 2, tensor_parallel=2)  # 101 rows are 102 there
    run_distributed(in_megatron, 2, split, "save", str(folder))
    model, _ = load_model(import_megatron(folder, tmp_path / "ours", split.recipe().model).path)
    assert model.embeddings.token.weight.shape == (101, 36)
    assert not torch.equal(model.embeddings.token.weight[100], torch.zeros(36))


def test_a_layer_is_a_place_in_a_stack():
    section = cell_of(True).recipe().model
    places = {place_of(name, section) for name in parameter_shapes(section)}
    assert len(places) == len(parameter_shapes(section))
    assert place_of("layers.2.attention_norm.bias", section) == (
        "decoder.layers.self_attention.linear_qkv.layer_norm_bias",
        2,
    )


def section_of(**changes: object) -> ModelSection:
    return ModelSection.model_validate({**cell_of(True).recipe().model.model_dump(), **changes})


def test_a_folder_of_another_model_is_refused_with_both_shapes(tmp_path):
    (tmp_path / "in").mkdir()
    run_distributed(in_megatron, 1, cell_of(True), "save", str(tmp_path / "in"))
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight is \(3, 50, 36\), .* means \(2, 50, 36\)"):
        import_megatron(tmp_path / "in", tmp_path / "out", section_of(num_layers=2))
    assert not Path(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"), [({"family": "gpt1"}, "model.family=gpt1"), ({}, "no distributed checkpoint")]
)
def test_what_is_no_checkpoint_of_a_gpt2_is_refused(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        import_megatron(
            tmp_path, tmp_path / "out", ModelSection.model_validate({**section_of().model_dump(), **changes})
        )
