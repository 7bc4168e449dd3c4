"""What `ptm data build` can be told."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer


class Scrub(Enum):
    """What can be replaced in texts."""

    EMAIL = "email"
    PHONE = "phone"
    IP = "ip"


Inputs = Annotated[
    list[str],
    typer.Option("--input", help="File, quoted glob or URL: jsonl, txt, parquet, tar, also packed; repeatable."),
]
MoreInputs = Annotated[list[str] | None, typer.Argument(metavar="FILE", help="More inputs.")]
TokenizerFolder = Annotated[Path, typer.Option(help="Folder that `ptm tokenizer train` wrote.")]
Out = Annotated[Path, typer.Option(help="Folder to write: train/ and validation/.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that work; with mpirun each rank is one.")]
ValidationFraction = Annotated[
    float, typer.Option(min=0.0, max=0.5, help="Share of the documents held out for validation.")
]
ShardBytes = Annotated[int, typer.Option(min=1, help="Bytes of text in a shard.")]
TextField = Annotated[str, typer.Option(help="Field or column of the text.")]
IdField = Annotated[str, typer.Option(help="Field or column of a document's id.")]
MetadataField = Annotated[
    list[str] | None, typer.Option(help="Field or column to keep with each document; repeatable.")
]
TxtDocuments = Annotated[
    Literal["blank_line", "line", "file"], typer.Option(help="What ends a document in .txt files.")
]
Normalize = Annotated[Literal["none", "NFC", "NFKC"], typer.Option(help="Unicode normal form of the text.")]
MinCharacters = Annotated[int, typer.Option(min=0, help="Leave out shorter documents.")]
MaxCharacters = Annotated[int | None, typer.Option(min=1, help="Leave out longer documents.")]
Scrubs = Annotated[list[Scrub] | None, typer.Option("--scrub", help="Replace these in the text; repeatable.")]
Deduplicate = Annotated[
    Literal["none", "exact", "near"], typer.Option(help="Leave out documents that were there before.")
]
NearThreshold = Annotated[
    float, typer.Option(help="Share of common word groups (Jaccard) from which documents are near duplicates.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was built of something else.")]
