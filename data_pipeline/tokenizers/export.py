"""Our tokenizers as Hugging Face folders, for ``transformers.AutoTokenizer`` of any model family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from data_pipeline.atomic import atomic_file
from data_pipeline.errors import DataError
from data_pipeline.tokenizers.conversion import library_model
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tokenizers.protocol import Tokenizer

if TYPE_CHECKING:
    import tokenizers

Family = Literal["gpt", "bert", "roberta", "albert"]
FAMILIES: tuple[Family, ...] = get_args(Family)

_CLS_SEP = {"cls_token": "classify", "sep_token": "separator"}
_BOS_EOS = {"bos_token": "classify", "eos_token": "separator"}
_COMMON = {"unk_token": "unknown", "pad_token": "pad", "mask_token": "mask"}
_TOKENS: dict[Family, dict[str, str]] = {
    "gpt": {"bos_token": "end_of_document", "eos_token": "end_of_document"},
    "bert": _CLS_SEP,
    "roberta": _CLS_SEP | _BOS_EOS,
    "albert": _CLS_SEP | _BOS_EOS,
}
_PAIR: dict[Family, str] = {
    "bert": "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
    "roberta": "{cls}:0 $A:0 {sep}:0 {sep}:0 $B:0 {sep}:0",
    "albert": "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
}
_INPUTS: dict[Family, list[str]] = {
    # GPT-2 would add the embedding of token 0 for segment 0, and RoBERTa has one segment.
    "gpt": ["input_ids", "attention_mask"],
    "bert": ["input_ids", "token_type_ids", "attention_mask"],
    "roberta": ["input_ids", "attention_mask"],
    "albert": ["input_ids", "token_type_ids", "attention_mask"],
}


def export_tokenizer(folder: Path, out: Path, family: Family, max_positions: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, beside the model's ``config.json`` if there is one.

    The ids are those of our ``encode``, with the family's special ids around them when they are asked for. As in
    every Hugging Face tokenizer, the name of a special token in a text (``[MASK]``) becomes its id; with
    ``split_special_tokens=True`` it is text, as in our training data.

    Args:
        folder: one of our tokenizer folders, of any kind.
        out: folder to write into; made if it is missing.
        family: whose special tokens and templates to use.
        max_positions: tokens that the model can read at once, special ones included; the length to truncate to.

    Raises: DataError if the tokenizer cannot be read, lacks a special id the family needs, or ``out`` is not writable.
    """
    if family not in FAMILIES:
        raise DataError(f"unknown model family '{family}'; use {', '.join(FAMILIES[:-1])} or {FAMILIES[-1]}")
    if max_positions < 1:
        raise DataError(f"max_positions={max_positions} must be at least 1: the tokens that the model reads at once")
    tokenizer = load_tokenizer(folder)
    _check_roles(folder, family, tokenizer.special_ids)
    library = library_model(tokenizer)
    library.post_processor = _template(library, family, tokenizer.special_ids)
    settings = _settings(library, family, tokenizer, max_positions)
    for name, text in ("tokenizer.json", library.to_str()), ("tokenizer_config.json", json.dumps(settings, indent=2)):
        with atomic_file(out / name) as stream:
            stream.write(f"{text}\n".encode())


def _check_roles(folder: Path, family: Family, special_ids: dict[str, int]) -> None:
    needed = {"gpt": {"end_of_document"}}.get(family, {"classify", "separator", "mask", "pad"})
    if missing := sorted(needed - special_ids.keys()):
        raise DataError(f"the tokenizer in {folder} has no {' and no '.join(missing)} id, which {family} needs")


def _template(library: tokenizers.Tokenizer, family: Family, special_ids: dict[str, int]) -> Any:
    from tokenizers.processors import TemplateProcessing

    if family == "gpt":
        return TemplateProcessing(single="$A:0", pair="$A:0 $B:0", special_tokens=[])
    cls, sep = (library.id_to_token(special_ids[role]) for role in ("classify", "separator"))
    pair = _PAIR[family].format(cls=cls, sep=sep)
    return TemplateProcessing(
        single=" ".join(pair.split()[:3]),
        pair=pair,
        special_tokens=[(cls, special_ids["classify"]), (sep, special_ids["separator"])],
    )


def _settings(
    library: tokenizers.Tokenizer, family: Family, tokenizer: Tokenizer, max_positions: int
) -> dict[str, Any]:
    roles = _COMMON | _TOKENS[family]
    ids = tokenizer.special_ids
    return {
        # The class that runs tokenizer.json as it is; a family's own class would build another pipeline.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "model_input_names": _INPUTS[family],
        "clean_up_tokenization_spaces": False,
        **{name: library.id_to_token(ids[role]) for name, role in roles.items() if role in ids},
    }
