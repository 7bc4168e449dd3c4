"""MDS, the format of MosaicML streaming: the layout of its shards and the index that both directions share.

A folder has ``index.json`` and ``shard.00000.mds`` and so on. A shard is u32 samples *n*, u32 offsets [n + 1] from the
start of the file, the shard's configuration as JSON, and the samples. A sample is one u32 size for each column of
variable size, and then the values of all columns, in the order of their names. A column of encoding
``ndarray:int32`` holds a byte ``4 * dimensions + code``, the shape in unsigned integers of ``2**code`` bytes, and the
values; without a type in the encoding, a byte that names it stands first.

Source: mosaicml-streaming 0.13, ``streaming/base/format/mds``, read for its layout.
"""

from __future__ import annotations

INDEX = "index.json"
VERSION = 2
USUAL_COLUMNS = ("tokens", "input_ids")
VALUE_TYPES = {
    8: "uint8",
    9: "int8",
    16: "uint16",
    17: "int16",
    32: "uint32",
    33: "int32",
    64: "uint64",
    65: "int64",
}
"""Integer types by the byte that names them in an array of dynamic type."""
