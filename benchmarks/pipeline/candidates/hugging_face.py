"""transformers: the collator that masks, over a map-style data set in a plain DataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from benchmarks.pipeline.candidates.plain import Figures, PlainTokens, time_reading


class _Rows(Dataset[dict[str, Any]]):
    """Stretches of tokens between the special ids; which are special is given, so that nobody has to look it up."""

    def __init__(self, plain: str, sequence: int) -> None:
        self._data = PlainTokens.load(plain)
        self._sequence = sequence
        self._special = torch.zeros(sequence, dtype=torch.int64)
        self._special[[0, -1]] = 1

    def __len__(self) -> int:
        return self._data.tokens.size // (self._sequence - 2)

    def __getitem__(self, index: int) -> dict[str, Any]:
        room = self._sequence - 2
        row = np.empty(self._sequence, dtype=np.int64)
        row[0] = self._data.special_ids["classify"]
        row[1:-1] = self._data.tokens[index * room : (index + 1) * room]
        row[-1] = self._data.special_ids["separator"]
        return {"input_ids": torch.from_numpy(row), "special_tokens_mask": self._special}


def mask(
    plain: str, tokenizer: str, sequence: int, batch: int, batches: int, workers: int, unit: str = "token"
) -> Figures:
    """Token masking of rows in random order."""
    assert unit == "token"
    loaded = PreTrainedTokenizerFast(
        tokenizer_file=f"{tokenizer}/tokenizer.json", mask_token="<mask>", pad_token="<pad>"
    )
    collator = DataCollatorForLanguageModeling(loaded, mlm=True, mlm_probability=0.15)

    def open_loader() -> DataLoader[Any]:
        rows = _Rows(plain, sequence)
        return DataLoader(rows, batch, sampler=RandomSampler(rows), num_workers=workers, collate_fn=collator)

    return time_reading(open_loader, batches, batch)
