"""Which documents are kept and what is changed in them before they become tokens."""

from data_pipeline.filters.documents import DocumentFilter, FilterOptions
from data_pipeline.filters.duplicates import band_hashes, content_hash

__all__ = ["DocumentFilter", "FilterOptions", "band_hashes", "content_hash"]
