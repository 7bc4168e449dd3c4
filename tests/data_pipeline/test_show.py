from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from data_pipeline.loader import training_batches
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.show import format_shown, show_step
from tests.data_pipeline.shard_files import counting_shards


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return CausalSamples(counting_shards(tmp_path_factory.mktemp("train"), 31, 33, 31), 4)


ORDER = SampleOrder(23, 7, "train", "global")


def decode(ids):
    assert all(type(token) is int for token in ids)
    return " ".join(map(str, ids))


def show(samples, step, dp_rank=0, dp_size=1, order=ORDER):
    return show_step(samples, order, step=step, sizes=BatchSizes(7), dp_rank=dp_rank, dp_size=dp_size, decode=decode)


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4, 9])
def test_the_ranks_of_any_layout_show_the_same_global_batches(samples, dp_size):
    for step in range(8):
        joined = [shown for rank in range(dp_size) for shown in show(samples, step, rank, dp_size)]
        assert joined == show(samples, step)


def test_what_is_shown_is_what_training_reads(samples):
    batches = training_batches(samples, ORDER, sizes=BatchSizes(7), start_step=0, stop_step=8, dp_rank=1, dp_size=2)
    for batch in batches:
        shown = show(samples, batch.step, 1, 2)
        assert [sample.text for sample in shown] == [decode(row) for row in batch.inputs.tolist()]
        assert [sample.index for sample in shown] == batch.sample_ids.tolist()
        assert [sample.counter for sample in shown] == [batch.first_sample + row for row in range(len(shown))]


def test_epochs_and_document_starts_are_shown(samples):
    in_order = SampleOrder(23, 7, "train", "none")
    shown = show(samples, 3, order=in_order)
    assert [sample.counter for sample in shown] == list(range(21, 28))
    assert [sample.epoch for sample in shown] == [0, 0, 1, 1, 1, 1, 1]
    assert [sample.index for sample in shown] == [21, 22, 0, 1, 2, 3, 4]
    assert [sample.document_starts for sample in shown][:4] == [[], [], [0], []]
    assert show(samples, 1, order=in_order)[0].document_starts == [3]


def test_people_see_a_headline_and_the_text_of_every_sample(samples):
    text = format_shown(show(samples, 3, order=SampleOrder(23, 7, "train", "none")))
    assert "--- sample 23 of the run: index 0, epoch 1, documents start at 0 ---\n0 1 2 3" in text
    assert "--- sample 24 of the run: index 1, epoch 1, no document starts here ---\n4 5 6 7" in text
    assert text.count("--- sample") == 7


def test_what_is_shown_can_be_written_as_json(samples):
    shown = show(samples, 0)
    assert json.loads(json.dumps([asdict(sample) for sample in shown]))[0]["index"] == shown[0].index


def test_steps_that_cannot_be_are_refused(samples):
    with pytest.raises(ValueError):
        show(samples, -1)
    with pytest.raises(ValueError):
        show(samples, 0, 2, 2)
