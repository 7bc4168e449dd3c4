"""Runs of the BERT family: phases, ramps, masks and pairs go on where they stood, on any layout."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.errors import DataError
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.metrics import read_rows
from ptm_dist.training.run import run
from ptm_dist.training.world import World
from tests.ptm_dist.runs import losses, make_recipe, run_alone, run_processes, validation_losses, write_data

LAMB = {"kind": "lamb", "bias_correction": False, "learning_rate": 5e-3}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {"objective": {"kind": "mlm_nsp", "copies": 2}, "optimizer": {"bias_correction": False}},
    "roberta": {"objective": {"kind": "mlm", "mask_unit": "word"}, "optimizer": {"kind": "sgd"}},
    "albert": {"objective": {"kind": "mlm_sop", "mask_unit": "ngram"}, "optimizer": LAMB},
}
PHASES = [{"until_step": 5, "sequence_length": 12, "global_batch_size": 4, "max_predictions": 1}]
RAMP = {"start": 2, "increment": 1, "samples": 6}


def family_recipe(folder, name: str, family: str, **layout: Any) -> Recipe:
    sections = {section: dict(values) for section, values in SETTINGS[family].items()}
    sections["model"] = {"family": family, **({"embedding_size": 12} if family == "albert" else {})}
    sections["training"] = {"phases": PHASES, "batch_ramp": RAMP}
    launch = {"stop_at_step": layout.pop("stop_at_step")} if "stop_at_step" in layout else {}
    return make_recipe(folder, name, **sections, layout=layout, launch=launch)


@pytest.mark.parametrize("family", SETTINGS)
def test_a_run_that_stops_in_its_first_phase_goes_on_elsewhere_on_the_same_curve(family, tmp_path):
    write_data(tmp_path / "data")
    whole = family_recipe(tmp_path, "whole", family)
    run_alone(whole)
    split = family_recipe(tmp_path, "split", family, zero_stage=2, stop_at_step=3)
    assert run_processes(split, 2) == [0, 0]
    run_alone(family_recipe(tmp_path, "split", family, stop_at_step=7))
    assert run_processes(family_recipe(tmp_path, "split", family, tensor_parallel=2), 2) == [0, 0]
    # Float64: another order of sums, grown over twelve steps.
    assert losses(split) == pytest.approx(losses(whole), rel=1e-10)
    assert validation_losses(split) == pytest.approx(validation_losses(whole), rel=1e-10)
    rows = [row for row in read_rows(whole.directory / "metrics.jsonl") if row["kind"] == "train"]
    assert rows[-1]["samples"] == 2 + 2 + 3 + 4 + 4 + 7 * 6
    assert rows[-1]["tokens"] == 15 * 12 + 42 * 16


def test_rows_name_the_parts_of_the_loss_and_accuracies(tmp_path):
    write_data(tmp_path / "data")
    recipe = family_recipe(tmp_path, "run", "albert")
    run_alone(recipe)
    for row in read_rows(recipe.directory / "metrics.jsonl"):
        if row["kind"] in {"train", "validation"}:
            assert row["loss"] == pytest.approx(row["mlm_loss"] + row["sop_loss"])
            assert 0.0 <= row["mlm_accuracy"] <= 1.0
            assert 0.0 <= row["sop_accuracy"] <= 1.0


def test_shards_of_a_tokenizer_without_a_mask_are_refused_before_training(tmp_path):
    from data_pipeline.shards import TokenizerIdentity

    write_data(tmp_path / "data", tokenizer=TokenizerIdentity("0" * 64, 67, {"end_of_document": 0, "pad": 1}))
    with pytest.raises(DataError, match="mask"):
        run(family_recipe(tmp_path, "run", "roberta"), World.single())
