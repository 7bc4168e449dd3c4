"""Checkpoints as folders that Hugging Face ``transformers`` loads, and such folders as checkpoints.

exporting.py and importing.py are the two ways; weight_files.py reads their files, shards.py writes them. Both ways
hold one tensor in memory at a time. Names and shapes are those of :mod:`ptm_dist.models.hf`. deepspeed_universal.py
does both for DeepSpeed's universal checkpoints, optimizer state included.
"""

from ptm_dist.checkpoint.convert.deepspeed_universal import UniversalCheckpoint, export_universal, import_universal
from ptm_dist.checkpoint.convert.exporting import Export, export_checkpoint
from ptm_dist.checkpoint.convert.importing import Import, import_checkpoint

__all__ = [
    "Export",
    "Import",
    "UniversalCheckpoint",
    "export_checkpoint",
    "export_universal",
    "import_checkpoint",
    "import_universal",
]
