"""What stands above the tables of each comparison: what is measured, and where the candidates do different work."""

ABOUT = {
    "build": """# Tokenising and writing

Text to tokens on disk, per core: every candidate is bound to so many cores and may use as many processes; libraries
start no threads. Ours also splits off validation data, finds sentences and words, and hashes every block.
megatron-core and mosaicml-streaming get the tokenizer libraries' fast calls, which are faster than what their own tools
use. mosaicml-streaming and datatrove divide work by files, of which there are 8; datatrove reads `tokenizer.json` only.
""",
    "read": """# Reading at random

Samples of 1,024 tokens in random order, in batches of 16 as int64 inputs and labels, from local files of 64 MiB, the
same tokens for all. Ours checks every block against its hash when it is first read, the others check nothing.
webdataset shuffles within a buffer of 4,096 samples and repeats some; litdata shuffles within a chunk at a time. For
files not in the page cache, they were dropped by fsync and POSIX_FADV_DONTNEED before each run. The rate is that of all
batches after the first; the time to the first, libraries' imports left out, has its own column. The processor time of
the process that reads is, without workers, the whole cost of a sample; with workers, what remains for the trainer.
""",
    "mask": """# Masking

Batches of 32 for masked language modelling, 15% of the tokens, in random order from a warm cache. Ours takes whole
sentences, over document ends; megatron-core's BERT dataset whole sentences of one document; Hugging Face's collator
gets fixed stretches of tokens from a memory map, with the special tokens already marked. megatron-core's n-grams are of
pieces, as it knows words in WordPiece vocabularies only.
""",
    "resume": """# Finding a step

From the number of a step in the middle of an epoch to the 1,024 samples of its batch: order alone, as no such data
exist here. megatron-core builds its arrays once for a data set and a number of steps, and maps them from files
afterwards; mosaicml-streaming arranges the epoch anew at each start and each epoch. Peers were not run where there is
no figure; nothing is extrapolated. Memory is what the process's peak grew by.
""",
    "stream": """# Streaming

Training at a constant rate from a server on this machine that answers each request after 50 ms, with an empty cache at
the start: the share of the time, from the first batch on, without data. Ours reads plain HTTP, the others S3, as they
read no plain HTTP. litdata has files twice as large for the same samples, as it stores 32 bits a token.
""",
}
