"""The same models in Hugging Face ``transformers``: names, shapes and configuration, in both directions.

layouts.py says how tensors are laid out, keys.py how they are called, settings.py reads configurations; each of
the other files is a model class. Nothing here imports ``transformers``.
"""

from ptm_dist.models.hf.conversion import (
    counterpart,
    counterpart_of,
    from_hf,
    hf_config,
    model_section,
    tensor_pairs,
    to_hf,
)
from ptm_dist.models.hf.counterpart import Counterpart
from ptm_dist.models.hf.keys import KeyMatch, KeyTable, TensorPair

__all__ = [
    "Counterpart",
    "KeyMatch",
    "KeyTable",
    "TensorPair",
    "counterpart",
    "counterpart_of",
    "from_hf",
    "hf_config",
    "model_section",
    "tensor_pairs",
    "to_hf",
]
