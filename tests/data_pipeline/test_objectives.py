from __future__ import annotations

import numpy as np
import pytest
import torch

from data_pipeline.loader import training_batches, validation_batches
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.samples.masked import MaskedSamples
from data_pipeline.samples.masking import MaskingPolicy
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.samples.pairs import PairSamples
from data_pipeline.stream import SampleStream
from tests.data_pipeline.shard_files import SPECIAL_IDS, counting_prose, random_prose

KINDS = {"causal": CausalSamples, "mlm": MaskedSamples, "mlm_nsp": PairSamples, "mlm_sop": PairSamples}
SIZES = BatchSizes(16, start=4, increment=4, ramp_samples=60)
COLUMNS = ("inputs", "labels", "lengths", "segments", "pair_labels")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return counting_prose(tmp_path_factory.mktemp("prose"), [random_prose(12, seed=seed) for seed in range(2)])


def build(shards, kind, *, keep_tail=False, **options):
    return build_samples(shards, ObjectiveOptions(kind, **options), 64, 7, "train", keep_tail)


def load(samples, start, stop, dp_rank=0, dp_size=1, workers=0):
    order = SampleOrder(len(samples), 7, "train", "global")
    return list(
        training_batches(
            SampleStream.single(samples, order),
            sizes=SIZES,
            start_step=start,
            stop_step=stop,
            dp_rank=dp_rank,
            dp_size=dp_size,
            num_workers=workers,
        )
    )


def joined(slices):
    """The batches of all ranks side by side as whole ones, column by column."""
    return [
        [torch.cat([getattr(piece, name) for piece in step]) for name in COLUMNS] for step in zip(*slices, strict=True)
    ]


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_makes_its_samples_with_its_length_and_its_special_ids(shards, kind):
    samples = build(shards, kind)
    assert type(samples) is KINDS[kind]
    assert samples.sequence_length == 64
    assert samples.special_ids == SPECIAL_IDS


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_ranks_workers_and_restarts_reads_the_same_stream(shards, kind):
    samples = build(shards, kind, mask_unit="ngram")
    steps = 2 * len(samples) // 16 + 4
    alone = load(samples, 0, steps)
    assert alone[-1].first_sample > len(samples)  # into the second epoch and its masks
    expected = joined([alone])
    for dp_size in (2, 3, 5):
        assert_same(joined([load(samples, 0, steps, rank, dp_size) for rank in range(dp_size)]), expected)
    assert_same(joined([load(samples, 0, steps, workers=2)]), expected)
    assert_same(joined([load(build(shards, kind, mask_unit="ngram"), 7, steps)]), expected[7:])


def test_a_second_epoch_masks_the_same_samples_anew_and_static_masking_does_not(shards):
    for copies, same in ((0, False), (1, True)):
        samples = build(shards, "mlm", copies=copies)
        seen = {}
        repeats = []
        for batch in load(samples, 0, 2 * len(samples) // 16 + 4):
            for index, row in zip(batch.sample_ids.tolist(), batch.inputs, strict=True):
                repeats += [torch.equal(seen[index], row)] if index in seen else []
                seen[index] = row
        assert len(repeats) > 20
        assert sum(repeats) == (len(repeats) if same else 0)


def test_validation_masks_are_always_the_same(shards):
    samples = build(shards, "mlm")
    runs = [list(validation_batches(samples, batch_size=8, dp_rank=0, dp_size=1)) for _ in range(2)]
    assert_same(joined([runs[0]]), joined([runs[1]]))


def test_only_causal_samples_have_a_tail_to_keep(shards):
    for kind in KINDS:
        more = len(build(shards, kind, keep_tail=True)) - len(build(shards, kind))
        assert more == (1 if kind == "causal" else 0)


@pytest.mark.parametrize("kind", ["mlm", "mlm_nsp", "mlm_sop"])
def test_the_options_of_masking_reach_the_samples(shards, kind):
    options = ObjectiveOptions(kind, 0.3, 5, "word", 2, 0.6, 0.3)
    assert options.policy == MaskingPolicy(0.3, 5, "word", 2, 0.6, 0.3)
    everything = build(shards, kind, mask_fraction=0.9, mask_share=1.0, random_share=0.0).sample(0, 0)
    hidden = everything.labels != IGNORE_INDEX
    assert hidden.sum() >= 0.8 * everything.length
    assert (everything.inputs[hidden] == SPECIAL_IDS["mask"]).all()
    assert (build(shards, kind, max_predictions=3).sample(0, 0).labels != IGNORE_INDEX).sum() == 3


def test_the_share_of_short_pairs_reaches_the_samples(shards):
    always, never = (build(shards, "mlm_sop", short_sequence_probability=share) for share in (1.0, 0.0))
    lengths = [[samples.sample(index, 0).length for index in range(len(samples))] for samples in (always, never)]
    assert np.mean(lengths[0]) < 0.7 * np.mean(lengths[1])
