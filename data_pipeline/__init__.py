"""From raw text to the batches of a training step: what is read, and in which order.

Imports neither ptm_dist nor launcher; knows integers (`dp_rank`, `dp_size`), never process groups. Usable alone: the
names below are its library. Only those of the loader import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.batches import StepBatch as StepBatch
    from data_pipeline.build import build_shards as build_shards
    from data_pipeline.errors import DataError as DataError
    from data_pipeline.loader import training_batches as training_batches
    from data_pipeline.loader import validation_batches as validation_batches
    from data_pipeline.order import Mixture as Mixture
    from data_pipeline.order import SampleOrder as SampleOrder
    from data_pipeline.ramp import BatchSizes as BatchSizes
    from data_pipeline.samples.objectives import ObjectiveOptions as ObjectiveOptions
    from data_pipeline.samples.objectives import build_samples as build_samples
    from data_pipeline.shards import ShardSet as ShardSet
    from data_pipeline.stateful import StatefulLoader as StatefulLoader
    from data_pipeline.store import CacheOptions as CacheOptions
    from data_pipeline.store import open_shards as open_shards
    from data_pipeline.stream import SampleStream as SampleStream
    from data_pipeline.stream import StreamSource as StreamSource
    from data_pipeline.tokenizers import load_tokenizer as load_tokenizer

_HOMES = {
    "BatchSizes": "ramp",
    "CacheOptions": "store",
    "DataError": "errors",
    "Mixture": "order",
    "ObjectiveOptions": "samples.objectives",
    "SampleOrder": "order",
    "SampleStream": "stream",
    "ShardSet": "shards",
    "StatefulLoader": "stateful",
    "StepBatch": "batches",
    "StreamSource": "stream",
    "build_samples": "samples.objectives",
    "build_shards": "build",
    "load_tokenizer": "tokenizers",
    "open_shards": "store",
    "training_batches": "loader",
    "validation_batches": "loader",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a name of the library when it is first used: torch takes seconds, and most of this needs none."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
