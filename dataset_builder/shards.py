"""The Parquet files of one split, written as the rows come."""

import math
from pathlib import Path

ROWS_PER_GROUP = 1000


class ShardWriter:
    """Writes `<split>-00000-of-0000N.parquet`, with row groups of `ROWS_PER_GROUP` however the rows are handed over.

    Args:
        folder (`Path`): an existing folder.
        split (`str`): name of the split.
        num_rows (`int`): rows that will come; positive.
        shard_rows (`int`): rows in a file; the last one may hold fewer.
    """

    def __init__(self, folder: Path, split: str, num_rows: int, shard_rows: int):
        num_shards = math.ceil(num_rows / shard_rows)
        names = [f"{split}-{shard:05d}-of-{num_shards:05d}.parquet" for shard in range(num_shards)]
        self.paths = [folder / name for name in names]
        self._shard_rows = shard_rows
        self._waiting, self._num_waiting = [], 0
        self._writer, self._written = None, 0

    def write(self, table) -> None:
        """Add the rows of a `pyarrow.Table`."""
        self._waiting.append(table)
        self._num_waiting += len(table)
        while self._num_waiting >= self._next_group:
            self._write_group(self._next_group)

    def __enter__(self):
        return self

    def __exit__(self, error_type, *error):
        """Write what waits, and finish the last file."""
        try:
            while self._num_waiting and error_type is None:
                self._write_group(min(self._next_group, self._num_waiting))
        finally:
            if self._writer is not None:
                self._writer.close()

    @property
    def _next_group(self):
        return min(ROWS_PER_GROUP, self._shard_rows - self._written % self._shard_rows)

    def _write_group(self, num_rows):
        import pyarrow as pa
        import pyarrow.parquet as pq

        waiting = pa.concat_tables(self._waiting)
        if self._written % self._shard_rows == 0:
            if self._writer is not None:
                self._writer.close()
            path = self.paths[self._written // self._shard_rows]
            self._writer = pq.ParquetWriter(path, waiting.schema, compression="zstd")
        # One chunk a row group: how the rows came must not show in the bytes.
        self._writer.write_table(waiting.slice(0, num_rows).combine_chunks())
        self._written += num_rows
        self._waiting = [waiting.slice(num_rows)]
        self._num_waiting -= num_rows
