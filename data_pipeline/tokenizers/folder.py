"""A tokenizer's folder: the model as its library writes it, and a description that names its kind, hash and roles."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.atomic import atomic_folder
from data_pipeline.errors import DataError
from data_pipeline.shards import TokenizerIdentity

DESCRIPTION_FILE = "ptm_tokenizer.json"
IMPORTED = "huggingface"

_FORMAT = 2
_SENTENCEPIECE_NAMES = {
    "unknown": "<unk>",
    "pad": "<pad>",
    "end_of_document": "<|endoftext|>",
    "classify": "[CLS]",
    "separator": "[SEP]",
    "mask": "[MASK]",
}
SPECIAL_NAMES: dict[str, dict[str, str]] = {
    "sentencepiece-bpe": _SENTENCEPIECE_NAMES,
    "sentencepiece-unigram": _SENTENCEPIECE_NAMES,
    "bytelevel-bpe": {
        "classify": "<s>",
        "pad": "<pad>",
        "separator": "</s>",
        "end_of_document": "</s>",
        "unknown": "<unk>",
        "mask": "<mask>",
    },
    "wordpiece": {
        "pad": "[PAD]",
        "unknown": "[UNK]",
        "classify": "[CLS]",
        "separator": "[SEP]",
        "end_of_document": "[SEP]",
        "mask": "[MASK]",
    },
}
"""Name of each special role, for each kind that is trained here; ids count up from 0 in this order."""

TRAINED_KINDS = tuple(SPECIAL_NAMES)
ROLES = frozenset(_SENTENCEPIECE_NAMES)


def special_ids(kind: str) -> dict[str, int]:
    """Id of each special role of a trained kind; roles of one name share an id."""
    names = SPECIAL_NAMES[kind]
    order = list(dict.fromkeys(names.values()))
    return {role: order.index(name) for role, name in names.items()}


def model_file(kind: str) -> str:
    """Name of the file that holds the model of a kind."""
    return "tokenizer.model" if kind.startswith("sentencepiece") else "tokenizer.json"


def write_folder(
    out: Path, kind: str, model: bytes, identity: TokenizerIdentity, origin: dict[str, Any], *, overwrite: bool
) -> None:
    """Write a tokenizer's folder; it appears when it is complete.

    Args:
        out: folder to write.
        kind: one of ``TRAINED_KINDS`` or ``IMPORTED``.
        model: the model file's bytes.
        identity: hash, size and special ids of the tokenizer.
        origin: further keys of the description, such as the training that made the model.
        overwrite: replace a folder of that name.

    Raises: DataError if ``out`` exists and may not be replaced, or cannot be written.
    """
    description = {"format": _FORMAT, "kind": kind, **asdict(identity), **origin}
    with atomic_folder(out, overwrite=overwrite) as folder:
        (folder / model_file(kind)).write_bytes(model)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_description(folder: Path) -> dict[str, Any]:
    """Read and check a folder's description: ``kind``, ``sha256``, ``special_ids`` and what ``origin`` was.

    Raises: DataError if there is none, it is damaged, or of a kind or format that is not known.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise DataError(f"no tokenizer in {folder} (no {DESCRIPTION_FILE}); make one with `ptm tokenizer train`")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); train or copy the tokenizer again") from error
    needed = {"format", "kind", "sha256", "special_ids"}
    if not isinstance(description, dict) or not needed <= description.keys():
        raise DataError(f"{path} is damaged: it needs the keys {', '.join(sorted(needed))}; train or copy it again")
    if description["format"] != _FORMAT or description["kind"] not in (*TRAINED_KINDS, IMPORTED):
        raise DataError(
            f"{path}: tokenizer of kind {description['kind']!r}, format {description['format']!r} is not known; "
            f"train it again (this version reads format {_FORMAT})"
        )
    _check_special_ids(path, description)
    return description


def _check_special_ids(path: Path, description: dict[str, Any]) -> None:
    kind, found = description["kind"], description["special_ids"]
    if kind != IMPORTED and found != special_ids(kind):
        raise DataError(f"{path} is damaged: the special ids must be {special_ids(kind)}; train or copy it again")
    good = isinstance(found, dict) and found.keys() <= ROLES
    if not good or not all(isinstance(token, int) and token >= 0 for token in found.values()):
        raise DataError(f"{path} is damaged: special_ids must give ids of {', '.join(sorted(ROLES))}; copy it again")
