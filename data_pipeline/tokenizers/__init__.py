"""Text <-> token ids behind one protocol: trained deterministically here, or imported from Hugging Face folders.

=====================  ======================================================  =========
kind                   what it is                                              lossless
=====================  ======================================================  =========
sentencepiece-bpe      SentencePiece BPE with byte fallback                    yes
sentencepiece-unigram  SentencePiece unigram with byte fallback                yes
bytelevel-bpe          BPE over bytes, as in GPT-2 and RoBERTa                 yes
wordpiece              BERT's: words, then the longest pieces                  no
huggingface            any ``tokenizer.json``, see ``importing``               depends
=====================  ======================================================  =========
"""

from data_pipeline.tokenizers.export import FAMILIES, Family, export_tokenizer
from data_pipeline.tokenizers.folder import TRAINED_KINDS
from data_pipeline.tokenizers.hugging_face import HuggingFaceTokenizer
from data_pipeline.tokenizers.importing import import_tokenizer
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tokenizers.protocol import Tokenizer
from data_pipeline.tokenizers.sentence_piece import SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer

__all__ = [
    "FAMILIES",
    "TRAINED_KINDS",
    "Family",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "export_tokenizer",
    "import_tokenizer",
    "load_tokenizer",
    "train_tokenizer",
]
