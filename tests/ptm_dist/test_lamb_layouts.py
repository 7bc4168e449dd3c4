"""LAMB's norms are over whole parameters: the same steps wherever the parameters are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ptm_dist.models import model_spec
from ptm_dist.optim.lamb import Lamb
from ptm_dist.optim.whole_norms import WholeNorms
from ptm_dist.parallel.mesh import RankMesh, build_mesh
from ptm_dist.parallel.shards import LocalShard, chunk_range
from ptm_dist.parallel.tensor import split_dimension, tensor_box
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import LayoutSection, ModelSection
from tests.distributed import run_distributed

HEADS, HEAD_SIZE = 2, 5
HIDDEN = HEADS * HEAD_SIZE
QKV = "layers.0.attention.qkv.weight"
SHAPES = {
    "embeddings.token.weight": (23, HIDDEN),
    "embeddings.position.weight": (7, HIDDEN),
    "embeddings.norm.weight": (HIDDEN,),
    QKV: (3 * HIDDEN, HIDDEN),
    "layers.0.attention.qkv.bias": (3 * HIDDEN,),
    "layers.0.attention.output.weight": (HIDDEN, HIDDEN),
    "layers.0.ffn.up.weight": (13, HIDDEN),
    "pair_head.classifier.weight": (2, HIDDEN),
}
SPEC = model_spec(
    ModelSection(
        family="bert",
        vocab_size=23,
        max_positions=7,
        hidden_size=HIDDEN,
        num_heads=HEADS,
        num_layers=1,
        ffn_hidden_size=13,
    )
)
WHOLE_MESH = RankMesh()
WORLD, STEPS, RATE = 4, 6, 3e-3
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"zero_stage": 1},
    {"zero_stage": 3, "data_parallel_replicate": 2},
    {"tensor_parallel": 2},
    {"tensor_parallel": 4},
    {"tensor_parallel": 2, "zero_stage": 3},
]


def whole(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def cut(name: str, tensor: Tensor, mesh: RankMesh) -> LocalShard:
    """This rank's box: first tensor parallelism, then rows for ZeRO, as the engine cuts."""
    first, shape = tensor_box(name, tuple(tensor.shape), SPEC, mesh.tensor.size, mesh.tensor.rank)
    local = LocalShard(tensor.new_empty(shape), tuple(tensor.shape), first).cut(tensor)
    offset = list(first)
    begin, end = chunk_range(local.shape[0], mesh.shard.size, mesh.shard.rank)
    offset[0] += begin
    return LocalShard(local[begin:end].clone(), tuple(tensor.shape), tuple(offset))


def owners_at(mesh: RankMesh) -> Callable[[str], tuple[bool, bool]]:
    return lambda name: (split_dimension(name) is not None and mesh.tensor.size > 1, mesh.shard.size > 1)


def norms_of(tensors: dict[str, Tensor], mesh: RankMesh) -> Tensor:
    boxes = {name: cut(name, tensor, mesh) for name, tensor in tensors.items() if tensor.dim() > 1}
    norms = WholeNorms(boxes, owners_at(mesh), mesh, HEAD_SIZE)
    return norms.of({name: box.local for name, box in boxes.items()})[0]


def train(mesh: RankMesh) -> dict[str, LocalShard]:
    boxes = {name: cut(name, tensor, mesh) for name, tensor in whole(0).items()}
    optimizer = Lamb(
        lambda: boxes,
        owners_at(mesh),
        mesh,
        HEAD_SIZE,
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=0.1,
        bias_correction=True,
    )
    for step in range(STEPS):
        gradients = {name: cut(name, tensor, mesh).local for name, tensor in whole(100 + step).items()}
        optimizer.step(gradients, RATE)
    return boxes


def train_at(layouts: list[dict[str, Any]]) -> list[tuple[dict[str, LocalShard], Tensor]]:
    results = []
    for values in layouts:
        layout = resolve_layout(LayoutSection.model_validate(values), dist.get_world_size())
        mesh = build_mesh(layout, torch.device("cpu"))
        results.append((train(mesh), norms_of(whole(3), mesh)))
    return results


def joined(name: str, ranks: list[dict[str, LocalShard]]) -> Tensor:
    """The whole parameter; ranks that hold the same element must hold the same bits."""
    full = torch.full(SHAPES[name], torch.nan, dtype=torch.float64)
    for boxes in ranks:
        target = boxes[name].cut(full)
        known = ~target.isnan()
        assert torch.equal(target[known], boxes[name].local[known]), f"ranks disagree about {name}"
        target.copy_(boxes[name].local)
    return full


@pytest.fixture(scope="module")
def by_rank() -> list[list[tuple[dict[str, LocalShard], Tensor]]]:
    return run_distributed(train_at, WORLD, LAYOUTS)


at_every_layout = pytest.mark.parametrize("index", range(len(LAYOUTS)), ids=[str(layout) for layout in LAYOUTS])


@at_every_layout
def test_lamb_makes_the_same_steps_at_every_layout(by_rank, index):
    alone = train(WHOLE_MESH)
    for name, box in alone.items():
        # Norms are summed in another order: a few roundings of float64, of weights near 1.
        torch.testing.assert_close(
            joined(name, [results[index][0] for results in by_rank]), box.local, rtol=1e-14, atol=1e-14
        )


@at_every_layout
def test_every_element_counts_once_in_a_norm_and_all_ranks_agree_to_the_bit(by_rank, index):
    alone = norms_of(whole(3), WHOLE_MESH)
    for results in by_rank:
        torch.testing.assert_close(results[index][1], alone, rtol=1e-14, atol=0.0)
        assert torch.equal(results[index][1], by_rank[0][index][1])


def test_the_layouts_cut_unevenly_and_leave_ranks_empty(by_rank):
    zero = [results[LAYOUTS.index({"zero_stage": 1})][0] for results in by_rank]
    assert [len(boxes["pair_head.classifier.weight"].local) for boxes in zero] == [1, 1, 0, 0]
    # 8 of the 30 rows end inside the key of the first head, which has rows 5 to 9.
    assert [boxes[QKV].offset[0] for boxes in zero] == [0, 8, 16, 24]
    mixed = [results[LAYOUTS.index({"tensor_parallel": 2, "zero_stage": 3})][0] for results in by_rank]
    assert sorted((boxes[QKV].offset[0], len(boxes[QKV].local)) for boxes in mixed) == [
        (0, 8),
        (8, 7),
        (15, 8),
        (23, 7),
    ]


def test_a_fused_weight_has_a_norm_for_query_key_and_value():
    tensors = whole(3)
    boxes = {name: LocalShard(t, tuple(t.shape), (0, 0)) for name, t in tensors.items() if t.dim() == 2}
    norms = WholeNorms(boxes, lambda name: (False, False), WHOLE_MESH, HEAD_SIZE)
    (values,) = norms.of(tensors)
    query, key, value = tensors[QKV].view(HEADS, 3, HEAD_SIZE, HIDDEN).unbind(1)
    matrices = [tensors["embeddings.token.weight"], tensors["embeddings.position.weight"], query, key, value]
    assert values[:5].tolist() == pytest.approx([matrix.norm().item() for matrix in matrices], rel=1e-14)
    factors = norms.spread(values)
    assert torch.equal(factors[QKV].flatten(), values[2:5].repeat_interleave(HEAD_SIZE).repeat(HEADS))
