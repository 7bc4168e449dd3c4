"""Where documents come from: JSON lines, text, parquet and tars, packed or not, on disk or behind a URL."""

from data_pipeline.sources.describe import FileDescription, describe_files
from data_pipeline.sources.document import Document, SourceOptions
from data_pipeline.sources.files import SourceFile, find_sources
from data_pipeline.sources.pieces import Piece, cut_sources, read_documents, read_piece

__all__ = [
    "Document",
    "FileDescription",
    "Piece",
    "SourceFile",
    "SourceOptions",
    "cut_sources",
    "describe_files",
    "find_sources",
    "read_documents",
    "read_piece",
]
