"""The token-shard format: documents of token ids in tar files that are read in place.

A shard ``NAME.tar`` is an uncompressed USTAR archive of a few large members, every one of them at a multiple
of 512 bytes, so that a memory map reads it where it lies. Plain ``webdataset`` reads it as one sample.

=================  ==================================================================================
member             content, little-endian
=================  ==================================================================================
KEY.meta.json      format version, token dtype, numbers of tokens, documents and sentences
KEY.tokens.bin     token ids of all documents, one after the other: u16, or u32 from 65536 ids on
KEY.docs.bin       i64 position of the first token of each document, then the number of tokens
KEY.sents.bin      i32 position of the first token of each sentence, then the number of tokens
KEY.wstart.bin     one bit per token, 1 where a word starts; token i is bit i % 8 (from the lowest) of byte i // 8
KEY.origin.bin     u32 number of the source file of each document, in the list `build.sources` of the manifest
KEY.info.jsonl     one JSON object per document, what else is known about it; only if something is
KEY.hashes.bin     u64 XXH3 of each block of 64 KiB of the members above, one after the other; each starts a new block
=================  ==================================================================================

``manifest.json`` beside the shards lists their order, sizes and hashes, and the tokenizer that made them; it holds
a checksum of itself.
The bytes depend on the documents alone: no times, no user names, no machine.
"""

from data_pipeline.shards.errors import BrokenShard, Damage
from data_pipeline.shards.files import LocalFiles, MemberFiles, ShardFiles
from data_pipeline.shards.format import TokenizedDocument, TokenizedDocuments, TokenizerIdentity, token_dtype
from data_pipeline.shards.manifest import Manifest, MemberEntry, ShardEntry, write_manifest
from data_pipeline.shards.reader import ShardSet
from data_pipeline.shards.structure import Structure
from data_pipeline.shards.verify import verify
from data_pipeline.shards.writer import write_shard

__all__ = [
    "BrokenShard",
    "Damage",
    "LocalFiles",
    "Manifest",
    "MemberEntry",
    "MemberFiles",
    "ShardEntry",
    "ShardFiles",
    "ShardSet",
    "Structure",
    "TokenizedDocument",
    "TokenizedDocuments",
    "TokenizerIdentity",
    "token_dtype",
    "verify",
    "write_manifest",
    "write_shard",
]
