"""datatrove: its tokenizing pipeline."""

from __future__ import annotations

from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from loguru import logger

from benchmarks.pipeline.candidates.encoders import END_OF_DOCUMENT
from benchmarks.pipeline.candidates.plain import Figures, time_building


def build(files: list[str], tokenizer: str, out: str, workers: int) -> Figures:
    """Every process reads, encodes and writes its share of the files; documents keep their order."""
    import tokenizers

    logger.remove()
    model = f"{tokenizer}/tokenizer.json"
    end = tokenizers.Tokenizer.from_file(model).id_to_token(END_OF_DOCUMENT)
    executor = LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(Path(files[0]).parent), glob_pattern="*.jsonl"),
            DocumentTokenizer(out, tokenizer_name_or_path=model, eos_token=end, shuffle_documents=False),
        ],
        tasks=workers,
        logging_dir=f"{out}-log",
        start_method="fork",
    )

    def run() -> int:
        executor.run()
        return sum(path.stat().st_size for path in Path(out).glob("*.ds")) // 2

    return time_building(run)
