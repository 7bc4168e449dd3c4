from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch

from data_pipeline.batches import Parcel, StepBatch


def batch_of(step, rows, length, *, segments, documents, highest):
    rng = torch.Generator().manual_seed(step)
    ids = torch.randint(0, highest, (rows, length), generator=rng)
    return StepBatch(
        step=step,
        first_sample=10 * step,
        global_batch_size=2 * rows,
        sample_ids=np.arange(rows),
        inputs=ids,
        labels=torch.where(ids % 3 == 0, ids, -100),
        lengths=torch.arange(rows) % length + 1,
        segments=ids % 2 if segments else torch.zeros_like(ids),
        pair_labels=torch.arange(rows) % 2,
        documents=ids.cumsum(1) if documents else None,
        source_ids=np.arange(rows) % 3,
    )


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize(
    ("rows", "length", "highest", "kind"),
    [(3, 5, 100, np.ndarray), (0, 5, 100, np.ndarray), (64, 2048, 70_000, torch.Tensor), (2, 3, 1 << 32, np.ndarray)],
)
def test_batches_arrive_as_they_were_sent(segments, documents, rows, length, highest, kind):
    sent = [batch_of(step, rows, length, segments=segments, documents=documents, highest=highest) for step in range(3)]
    parcel = Parcel.of(sent)
    assert isinstance(parcel.rows, kind)
    arrived = list(pickle.loads(pickle.dumps(parcel)).unpacked())
    for one, other in zip(sent, arrived, strict=True):
        for field in fields(StepBatch):
            before, after = getattr(one, field.name), getattr(other, field.name)
            if isinstance(before, torch.Tensor):
                assert torch.equal(before, after), field.name
                assert after.dtype == torch.int64
            else:
                np.testing.assert_array_equal(before, after)


def test_segments_of_one_batch_of_several_are_kept_for_all():
    sent = [batch_of(step, 2, 4, segments=step == 1, documents=False, highest=50) for step in range(3)]
    arrived = list(Parcel.of(sent).unpacked())
    assert [bool(batch.segments.any()) for batch in arrived] == [False, True, False]
    assert torch.equal(arrived[1].segments, sent[1].segments)
