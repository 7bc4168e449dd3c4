"""Token ids from and to the formats of other programs.

=========  =====================================  =================================================================
format     whose                                  what it keeps of a document
=========  =====================================  =================================================================
megatron   Megatron-LM ``.bin`` and ``.idx``      ids, bounds, and sentences as sequences of their own
mds        MosaicML streaming, version 2          ids and bounds
olmo       OLMo and dolma, raw ``.npy``           ids; bounds follow from the end-of-document ids
parquet    Hugging Face ``datasets``              ids and bounds; text on request
jsonl      anybody's                              ids and bounds; text on request
=========  =====================================  =================================================================

Every reader gives, and every writer takes, a stream of blocks of documents (``block.TokenBlock``), so that no loop in
Python runs over tokens and memory does not grow with the data.
"""

from data_pipeline.interop.exporting import ExportOptions, ExportSummary, export_shards
from data_pipeline.interop.formats import FORMATS
from data_pipeline.interop.importing import ImportCounts, ImportOptions, ImportSummary, import_tokens

__all__ = [
    "FORMATS",
    "ExportOptions",
    "ExportSummary",
    "ImportCounts",
    "ImportOptions",
    "ImportSummary",
    "export_shards",
    "import_tokens",
]
