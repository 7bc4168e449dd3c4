"""Checkpoints: what a run needs to go on, at any layout, after dying at any moment.

state.py moves boxes of tensors; store.py makes a directory of them appear all at once and checks it;
retention.py deletes old ones; model.py takes a whole model out of one.
"""

from ptm_dist.checkpoint.model import find_checkpoint, load_model
from ptm_dist.checkpoint.retention import prune
from ptm_dist.checkpoint.store import (
    CheckpointInfo,
    CheckpointStore,
    Description,
    best,
    latest,
    list_checkpoints,
    read_checkpoint,
    sweep,
    verify,
)

__all__ = [
    "CheckpointInfo",
    "CheckpointStore",
    "Description",
    "best",
    "find_checkpoint",
    "latest",
    "list_checkpoints",
    "load_model",
    "prune",
    "read_checkpoint",
    "sweep",
    "verify",
]
