"""What the columns of a trace take on disk, and the bounds for expert ids."""

import math
from pathlib import Path

import pyarrow.parquet as pq

from moeworks.trace.header import TraceHeader, decode_header


def bytes_per_assignment(path: str | Path, field: str) -> float:
    """Compressed bytes of the columns `field` ("ids", "weights", ...) of all layers, an assignment."""
    file = pq.ParquetFile(path)
    header = decode_header(file.schema_arrow.metadata, str(path))
    meta = file.metadata
    size = 0
    for group in range(meta.num_row_groups):
        for index in range(meta.num_columns):
            column = meta.row_group(group).column(index)
            if column.path_in_schema.partition(".")[0].rpartition("_")[0] == field:
                size += column.total_compressed_size
    return size / max(meta.num_rows * header.top_k * len(header.layers), 1)


def packed_bytes(header: TraceHeader) -> float:
    """What a dictionary of ids takes before zstd, an assignment: ceil(log2 E) bits. At most 2 bytes.

    >>> packed_bytes(TraceHeader(num_experts=64, top_k=8, layers=(0,)))
    0.75
    """
    return math.ceil(math.log2(max(header.num_experts, 2))) / 8


def uniform_entropy_bytes(header: TraceHeader) -> float:
    """The entropy of K different experts in their order, all choices alike, in bytes an assignment.

    No code takes less on average for a router without any pattern: log2(E! / (E - K)!) / K bits. Real routing
    has patterns, and takes less.

    >>> round(uniform_entropy_bytes(TraceHeader(num_experts=64, top_k=8, layers=(0,))), 3)
    0.74
    """
    experts, k = header.num_experts, header.top_k
    nats = math.lgamma(experts + 1) - math.lgamma(experts - k + 1)
    return nats / math.log(2) / k / 8
