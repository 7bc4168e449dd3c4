from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from data_pipeline.loader import training_batches
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.samples.masked import MaskedSamples
from data_pipeline.samples.masking import MaskingPolicy
from data_pipeline.samples.pairs import PairSamples
from data_pipeline.show import format_shown, show_step
from data_pipeline.stream import SampleStream
from tests.data_pipeline.shard_files import counting_prose, counting_shards, document, write_shards


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return CausalSamples(counting_shards(tmp_path_factory.mktemp("train"), 31, 33, 31), 4)


ORDER = SampleOrder(23, 7, "train", "global")


def decode(ids):
    assert all(type(token) is int for token in ids)
    return " ".join(map(str, ids))


def show(samples, step, dp_rank=0, dp_size=1, order=ORDER):
    stream = SampleStream.single(samples, order)
    return show_step(stream, step=step, sizes=BatchSizes(7), dp_rank=dp_rank, dp_size=dp_size, decode=decode)


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4, 9])
def test_the_ranks_of_any_layout_show_the_same_global_batches(samples, dp_size):
    for step in range(8):
        joined = [shown for rank in range(dp_size) for shown in show(samples, step, rank, dp_size)]
        assert joined == show(samples, step)


def test_what_is_shown_is_what_training_reads(samples):
    stream = SampleStream.single(samples, ORDER)
    batches = training_batches(stream, sizes=BatchSizes(7), start_step=0, stop_step=8, dp_rank=1, dp_size=2)
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
    assert "--- sample 23 of the run: index 0, epoch 1, documents start at 0, 4 predictions ---\n0 1 2 3" in text
    assert "--- sample 24 of the run: index 1, epoch 1, no document starts here, 4 predictions ---\n4 5 6 7" in text
    assert text.count("--- sample") == 7


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    return counting_prose(tmp_path_factory.mktemp("prose"), [[[5, 6, 4], [7, 3]]])


def show_all(samples):
    order = SampleOrder(len(samples), 7, "train", "none")
    stream = SampleStream.single(samples, order)
    return show_step(stream, step=0, sizes=BatchSizes(len(samples)), dp_rank=0, dp_size=1, decode=decode)


def test_masked_tokens_are_shown_beside_what_stands_in_their_place(prose):
    samples = MaskedSamples(prose, 20, MaskingPolicy(max_predictions=2), seed=7, source="train", copies=0)
    for shown in show_all(samples):
        sample = samples.sample(shown.index, 0)
        names = {3: "[classify]", 4: "[separator]", 2: "[end_of_document]", 5: "[mask]"}
        expected = []
        for seen, predicted in list(zip(sample.inputs.tolist(), sample.labels.tolist(), strict=True))[: sample.length]:
            name = names.get(seen, str(seen))
            expected.append(name if predicted == IGNORE_INDEX else f"«{predicted}→{name}»")
        assert shown.text == " ".join(expected)
        assert shown.text.count("→") == shown.predictions == 2
        assert shown.pair_label is None
    assert "[end_of_document]" in show_all(samples)[0].text


def test_the_texts_of_a_pair_stand_on_lines_of_their_own_under_its_label(prose):
    policy = MaskingPolicy(mask_share=0.0, random_share=0.0)
    samples = PairSamples(prose, 20, policy, kind="sentence_order", seed=7, source="train", copies=0)
    shown = show_all(samples)
    labels = {sample.pair_label for sample in shown}
    for sample in shown:
        first, second = sample.text.split("\n")
        assert first.startswith("[classify] ")
        assert first.endswith(" [separator]")
        assert second.endswith(" [separator]")
        assert second[0] in "«0123456789"
    text = format_shown(shown)
    assert labels <= {0, 1}
    assert ("pair label 0 (in order) ---" in text) == (0 in labels)
    assert ("pair label 1 (not in order) ---" in text) == (1 in labels)


def test_one_id_of_two_roles_is_called_by_the_one_it_has_between_texts(tmp_path):
    ids = {"unknown": 1, "pad": 0, "end_of_document": 3, "classify": 2, "separator": 3, "mask": 4}
    shards = write_shards(tmp_path, [[document([6, 7, 8, 9, 3])]], special_ids=ids)
    samples = MaskedSamples(shards, 8, MaskingPolicy(), seed=7, source="train", copies=0)
    assert show_all(samples)[0].text.endswith("[separator] [separator]")


def test_parts_that_bring_their_own_spaces_get_no_more(prose):
    samples = MaskedSamples(prose, 20, MaskingPolicy(max_predictions=1), seed=7, source="train", copies=0)
    order = SampleOrder(len(samples), 7, "train", "none")

    def spaced(ids):
        return "".join(f" {token}" for token in ids)

    stream = SampleStream.single(samples, order)
    for shown in show_step(stream, step=0, sizes=BatchSizes(len(samples)), dp_rank=0, dp_size=1, decode=spaced):
        assert "  " not in shown.text


def test_what_is_shown_can_be_written_as_json(samples):
    shown = show(samples, 0)
    assert json.loads(json.dumps([asdict(sample) for sample in shown]))[0]["index"] == shown[0].index


def test_steps_that_cannot_be_are_refused(samples):
    with pytest.raises(ValueError):
        show(samples, -1)
    with pytest.raises(ValueError):
        show(samples, 0, 2, 2)
