"""Hugging Face tokenizer folders, new and old, as tokenizers of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.tokenizers.folder import IMPORTED, write_folder
from data_pipeline.tokenizers.hugging_face import HuggingFaceTokenizer
from data_pipeline.tokenizers.protocol import Tokenizer
from data_pipeline.tokenizers.vocabulary_files import tokenizer_json

_SETTINGS = {
    "unknown": "unk_token",
    "pad": "pad_token",
    "classify": "cls_token",
    "separator": "sep_token",
    "mask": "mask_token",
    "end_of_document": "eos_token",
}
_USUAL_NAMES = {
    "unknown": ("[UNK]", "<unk>"),
    "pad": ("[PAD]", "<pad>"),
    "classify": ("[CLS]", "<s>"),
    "separator": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "end_of_document": ("<|endoftext|>", "</s>"),
}


def import_tokenizer(folder: Path, out: Path, *, overwrite: bool = False) -> Tokenizer:
    """Make one of our tokenizer folders of a Hugging Face one; ids equal those of ``AutoTokenizer`` without templates.

    ``tokenizer.json`` is kept byte for byte. A folder without one may have ``vocab.txt`` (BERT) or ``vocab.json``
    and ``merges.txt`` (GPT-2, RoBERTa, GPT-1). Special roles come from ``tokenizer_config.json``, then
    ``special_tokens_map.json``, then the usual names among the special tokens; a document ends with the
    end-of-sequence token, else with the separator. Roles that are not found are left out.

    Args:
        folder: what ``save_pretrained`` wrote, or what a model hub holds.
        out: folder to write.
        overwrite: replace a folder of that name.

    Raises: DataError if the folder has no tokenizer that can be read, or ``out`` exists and may not be replaced.
    """
    settings = _read_settings(folder)
    path = folder / "tokenizer.json"
    try:
        model = path.read_bytes() if path.is_file() else tokenizer_json(folder, settings)
        special_ids = _special_ids(json.loads(model), settings)
        tokenizer = HuggingFaceTokenizer(model, special_ids)
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{folder}: not a tokenizer that can be read ({error}); export it again") from error
    write_folder(out, IMPORTED, model, tokenizer.identity, {}, overwrite=overwrite)
    return tokenizer


def _read_settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}); copy it again") from error
        if not isinstance(values, dict):
            raise DataError(f"{path} is damaged: not a JSON object; copy it again")
        found |= values
    return found


def _special_ids(model: dict[str, Any], settings: dict[str, Any]) -> dict[str, int]:
    special = {entry["content"]: entry["id"] for entry in model.get("added_tokens", []) if entry["special"]}
    known = _vocabulary(model) | {entry["content"]: entry["id"] for entry in model.get("added_tokens", [])}
    ids: dict[str, int] = {}
    for role, setting in _SETTINGS.items():
        value = settings.get(setting)
        name = value.get("content") if isinstance(value, dict) else value
        usual = next((name for name in _USUAL_NAMES[role] if name in special), None)
        # A name that the vocabulary lacks would be a token added at run time, which no model was trained with.
        if (token := known.get(name, known.get(usual))) is not None:
            ids[role] = token
    if "end_of_document" not in ids and "separator" in ids:
        ids["end_of_document"] = ids["separator"]
    if ids.get("unknown") in {token for role, token in ids.items() if role != "unknown"}:
        del ids["unknown"]  # GPT-2 names its end of text here, and never needs it
    return ids


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    entries = model["model"]["vocab"]
    if isinstance(entries, dict):
        return dict(entries)
    return {piece: token for token, (piece, _) in enumerate(entries)}
