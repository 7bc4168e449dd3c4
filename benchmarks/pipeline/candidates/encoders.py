"""The tokenizers as the peers use them: the libraries' own fast calls, without anything of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Encoder = Callable[[list[str]], list[list[int]]]

END_OF_DOCUMENT = 2
"""Id of the end of a document in byte-level BPE and SentencePiece tokenizers that `ptm tokenizer train` makes."""


def load_encoder(folder: str) -> Encoder:
    """Texts to ids by the model in a folder: ``tokenizer.json`` or ``tokenizer.model``; on one thread."""
    if (Path(folder) / "tokenizer.json").is_file():
        import tokenizers

        library = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        return lambda texts: [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=False)]
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")
    return lambda texts: processor.encode(texts, num_threads=1)
