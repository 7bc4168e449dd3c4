"""Shards on http, https, s3 or any other store that fsspec knows, read through a cache on the local disk.

A reader of remote shards is the same :class:`~data_pipeline.shards.ShardSet` as of local ones; its files are
:class:`RemoteFiles`. Every byte that arrives is checked against the manifest. Processes of one machine share
the cache: a shard is fetched once, and the one needed latest gives way.
"""

from data_pipeline.store.counters import CacheStatistics
from data_pipeline.store.options import CacheOptions
from data_pipeline.store.prefetch import Prefetcher
from data_pipeline.store.remote import RemoteFiles, is_remote, open_shards

__all__ = ["CacheOptions", "CacheStatistics", "Prefetcher", "RemoteFiles", "is_remote", "open_shards"]
