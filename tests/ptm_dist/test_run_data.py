"""Runs over several sources, changing weights, phases and broken shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batches import StepBatch
from data_pipeline.errors import DataError
from data_pipeline.shards import ShardSet
from ptm_dist.checkpoint.store import latest
from ptm_dist.errors import CheckpointError, RecipeError
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.data import RecipeData
from ptm_dist.training.preflight import check_checkpoint
from tests.data_pipeline.servers import random_faults, web_server
from tests.ptm_dist.recipes import small_recipe
from tests.ptm_dist.runs import events, losses, make_recipe, run_alone, run_processes, validation_losses, write_data

SOURCES = ({"name": "web", "weight": 0.7}, {"name": "books", "weight": 0.3, "max_epochs": 50})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, source in enumerate(SOURCES):
        write_data(tmp_path / str(source["name"]), seed=number, shards=4)
    return tmp_path


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shared")
    for number, source in enumerate(SOURCES):
        write_data(place / str(source["name"]), seed=number, shards=4)
    return place


def mixed(folder: Path, name: str, data: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Recipe:
    sources = [{**source, "path": str(folder / str(source["name"]))} for source in SOURCES]
    changes = [{"from_step": 6, "weights": [0.2, 0.8]}]
    own = {"path": None, "sources": sources, "weight_changes": changes, **(data or {})}
    return make_recipe(folder, name, data=own, **sections)


def test_a_mixture_whose_weights_change_is_the_same_run_on_any_layout(folder):
    whole = mixed(folder, "whole")
    run_alone(whole)
    split = mixed(folder, "split", launch={"stop_at_step": 4})
    assert run_processes(split, 2) == [0, 0]
    assert run_processes(mixed(folder, "split"), 3) == [0, 0, 0]
    assert losses(split) == pytest.approx(losses(whole), rel=1e-10)  # float64, other orders of sums
    assert validation_losses(split) == pytest.approx(validation_losses(whole), rel=1e-10)


def test_weights_hold_from_their_step_on(folder):
    data = RecipeData(mixed(folder, "run"))
    sizes = [np.bincount(batch.source_ids, minlength=2) for batch in data.training(0, 0, 1)]
    assert sum(sizes[:5]).tolist() == [21, 9]
    # Of 42 samples a fifth and four fifths, to the nearest that whole samples allow.
    assert sum(sizes[5:]).tolist() == [8, 34]
    assert sum(
        data.epochs[name] * len(source.samples)
        for name, source in zip(data.train, data.phases[0].stream.sources, strict=True)
    ) == pytest.approx(72)


def test_weights_may_change_behind_a_checkpoint_but_not_before_it(folder):
    run_alone(mixed(folder, "run", launch={"stop_at_step": 5}))
    info = latest(folder / "run" / "checkpoints")
    fingerprint = RecipeData(mixed(folder, "run")).fingerprint
    later = [{"from_step": 6, "weights": [1, 1]}, {"from_step": 9, "weights": [0, 1]}]
    check_checkpoint(mixed(folder, "other", {"weight_changes": later}), info, fingerprint)
    earlier = [{"from_step": 4, "weights": [1, 1]}]
    with pytest.raises(CheckpointError, match=r"of another order .*weight_changes"):
        check_checkpoint(mixed(folder, "other", {"weight_changes": earlier}), info, fingerprint)


@pytest.mark.parametrize("shuffle", ["global", "none"])
def test_a_phase_of_longer_samples_begins_with_text_that_was_not_read(folder, shuffle):
    phases = [{"until_step": 6, "sequence_length": 4}]
    recipe = mixed(folder, "run", {"shuffle": shuffle}, training={"phases": phases})
    data = RecipeData(recipe)
    read = {}
    for part in data.phases:
        last = part.phase.samples_before(part.phase.end_step)
        picks = part.stream.picks(0, last)
        for number in range(2):
            own = picks.sources == number
            assert set(picks.epochs[own].tolist()) == {0}
            length = part.phase.sequence_length
            tokens = picks.indices[own][:, None] * length + np.arange(length)
            read[number, part.phase.number] = set(tokens.ravel().tolist())
    for number in range(2):
        assert read[number, 0]
        assert read[number, 1]
        assert not read[number, 0] & read[number, 1]


def test_block_shuffling_reads_a_shard_to_its_end_before_many_others_are_opened(folder):
    recipe = mixed(folder, "run", {"shuffle": "block", "shuffle_shards": 2})
    stream = RecipeData(recipe).phases[0].stream
    source = stream.sources[0]
    order = source.order.samples(0, len(source.samples))
    starts = np.cumsum([0, *[entry.tokens for entry in source.shards.manifest.shards]])
    shards = np.searchsorted(starts, order * 16, side="right") - 1
    half = np.flatnonzero(np.isin(shards, shards[: shards.size // 4]))
    assert len(set(shards[: half[-1] + 1].tolist())) == 2


@st.composite
def reading_plans(draw: st.DrawFn) -> dict[str, Any]:
    """What decides the order of a run: mixture, shuffle, batch sizes that grow, phases of other lengths."""
    start = draw(st.integers(1, 6))
    ramp = {"start": start, "increment": draw(st.integers(1, 3)), "samples": draw(st.integers(1, 25))}
    phase = {"until_step": draw(st.integers(1, 7)), "sequence_length": draw(st.sampled_from([6, 8, 12]))}
    weights = [draw(st.integers(0, 5)), draw(st.integers(1, 5))]
    return {
        "data": {
            "shuffle": draw(st.sampled_from(["global", "block", "none"])),
            "shuffle_shards": draw(st.integers(1, 3)),
            "weight_changes": [{"from_step": draw(st.integers(2, 8)), "weights": weights}],
        },
        "training": {
            "steps": 8,
            "batch_ramp": draw(st.sampled_from([None, ramp])),
            "phases": draw(st.sampled_from([[], [phase]])),
        },
        "objective": {"kind": draw(st.sampled_from(["causal", "mlm", "mlm_nsp"]))},
    }


@settings(deadline=None, max_examples=100)
@given(plan=reading_plans(), stop=st.integers(1, 7), before=st.integers(1, 6), after=st.integers(1, 6))
def test_any_plan_is_read_in_one_order_by_any_ranks_stopped_anywhere(shared_folder, plan, stop, before, after):
    recipe = mixed(shared_folder, "run", **plan)
    data = RecipeData(recipe)
    alone = [whole(pieces) for pieces in zip(data.training(0, 0, 1), strict=True)]
    assert len(alone) == 8
    first = [data.training(0, rank, before) for rank in range(before)]
    found = [whole(pieces) for pieces, _ in zip(zip(*first, strict=True), range(stop), strict=False)]
    again = RecipeData(recipe)
    found += [
        whole(pieces) for pieces in zip(*[again.training(stop, rank, after) for rank in range(after)], strict=True)
    ]
    for one, other in zip(alone, found, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def whole(pieces: tuple[StepBatch, ...]) -> list[torch.Tensor]:
    """A global batch, put together from the slices of all ranks."""
    return [torch.cat([getattr(piece, name) for piece in pieces]) for name in ("inputs", "labels", "segments")]


def damage(shards: Path) -> str:
    entry = ShardSet.open(shards).manifest.shards[2]
    path = shards / entry.name
    data = bytearray(path.read_bytes())
    data[entry.members["tokens.bin"].offset] ^= 1
    path.write_bytes(data)
    return entry.name


REPLACE = {"on_broken": "replace", "broken_limit_ppm": 500_000}


def test_all_ranks_go_on_without_a_broken_shard_and_remember_it(folder):
    name = damage(folder / "books" / "train")
    run_alone(mixed(folder, "whole", REPLACE))
    split = mixed(folder, "split", REPLACE, launch={"stop_at_step": 8})
    assert run_processes(split, 2) == [0, 0]
    assert run_processes(mixed(folder, "split", REPLACE), 3) == [0, 0, 0]
    assert losses(split) == pytest.approx(losses(mixed(folder, "whole", REPLACE)), rel=1e-10)
    told = events(split, "quarantine")
    assert [(event["source"], event["shard"]) for event in told] == [("books", name)]
    assert "is damaged" in told[0]["problem"]
    assert latest(split.directory / "checkpoints").manifest.quarantine == (("books", name),)


def from_web(folder: Path, url: str, name: str) -> Recipe:
    """The recipe of :func:`mixed` with its text behind a URL, and a cache that cannot hold all of it."""
    sources = [{**source, "path": f"{url}/{source['name']}"} for source in SOURCES]
    largest = max(path.stat().st_size for path in folder.rglob("shard-*.tar"))
    cache = {"directory": str(folder / f"cache-{name}"), "limit_gb": 4 * largest / 1e9, "timeout_seconds": 5}
    return mixed(folder, name, {"sources": sources, "cache": cache, "shuffle": "block", "shuffle_shards": 2})


def test_a_run_from_a_web_server_equals_one_from_a_folder(folder):
    here = mixed(folder, "here", {"shuffle": "block", "shuffle_shards": 2})
    run_alone(here)
    with web_server(folder, faults=random_faults(0.05, ("error", "truncate", "flip"))) as server:
        there = from_web(folder, server.url, "there")
        assert run_processes(there, 2) == [0, 0]
        assert server.requests
    assert losses(there) == pytest.approx(losses(here), rel=1e-10)
    assert validation_losses(there) == pytest.approx(validation_losses(here), rel=1e-10)
    told = {event["source"]: event for event in events(there, "cache")}
    assert set(told) == {"web", "books"}
    assert told["web"]["fetched_bytes"] > 0


def test_a_missing_shard_is_replaced_too(folder):
    (folder / "books" / "train" / "shard-2.tar").unlink()
    recipe = mixed(folder, "run", REPLACE)
    run_alone(recipe)
    assert "is missing" in events(recipe, "quarantine")[0]["problem"]
    with pytest.raises(DataError, match="is missing"):
        run_alone(mixed(folder, "other"))


def test_a_broken_shard_ends_a_run_that_may_not_replace_it(folder):
    name = damage(folder / "books" / "train")
    with pytest.raises(DataError, match=f"{name} is damaged"):
        run_alone(mixed(folder, "run"))


def test_more_broken_text_than_the_limit_ends_the_run(folder):
    name = damage(folder / "books" / "train")
    with pytest.raises(DataError, match=f"{name} is damaged.*more than data.broken_limit_ppm=1000"):
        run_alone(mixed(folder, "run", {"on_broken": "replace"}))


def test_a_source_that_would_be_repeated_too_often_is_named(folder):
    from ptm_dist.training.preflight import _check_amount

    recipe = mixed(folder, "run", {"max_epochs": 0.1})
    with pytest.raises(DataError, match=r"of .*web: 0\.\d+ epochs, more than data.max_epochs=0.1"):
        _check_amount(recipe, RecipeData(recipe))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"data__path": None}, "data.path is missing"),
        ({"data__sources": [{"name": "a", "path": "x", "weight": 1}]}, "data.path and data.sources are both given"),
        (
            {"data__path": None, "data__sources": [{"name": "a", "path": "x", "weight": 1}] * 2},
            "data.sources has a twice",
        ),
        (
            {"data__path": None, "data__sources": [{"name": "a", "path": "x", "weight": 0}]},
            "data.sources: weights [0.0] must not be negative, and one must be above 0",
        ),
        (
            {"data__weight_changes": [{"from_step": 5, "weights": [1, 2]}]},
            "data.weight_changes[0] has 2 weights for 0 of data.sources",
        ),
        (
            {"objective__kind": "mlm", "objective__packing": "best_fit", "model__family": "roberta"},
            "objective.packing=best_fit belongs to objective.kind=causal",
        ),
    ],
)
def test_data_keys_that_contradict_each_other_are_refused(values, expected):
    with pytest.raises(RecipeError) as raised:
        check_recipe(small_recipe(**values), 1, None)
    assert expected in str(raised.value)


def test_changes_out_of_order_are_refused():
    sources = [{"name": "a", "path": "x", "weight": 1}]
    changes = [{"from_step": 5, "weights": [2]}, {"from_step": 5, "weights": [1]}, {"from_step": 99, "weights": [1]}]
    with pytest.raises(RecipeError) as raised:
        check_recipe(small_recipe(data__path=None, data__sources=sources, data__weight_changes=changes), 1, None)
    assert "data.weight_changes[1].from_step=5 must lie behind step 5" in str(raised.value)
    assert "data.weight_changes[2].from_step=99 must lie behind step 5 and within training.steps=10" in str(
        raised.value
    )
