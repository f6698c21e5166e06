"""Reads Parquet objects as a verification needs it: every byte is looked at before any is trusted."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.processed import BROKEN, Counting
from stockstream.sinks.archive.sealing import require_keys, require_parquet
from stockstream.sinks.stores import Store
from stockstream.wording import counted, one_line


def open_object(store: Store, name: str, decode: Callable[[bytes], Counting], kind: str) -> tuple[Counting, pq.ParquetFile]:
    """An object's footer, by `decode`, and the file in memory. Errors name `kind`.

    Raises `ArchiveError` if its checksum does not match or it has no such footer, and what the store raises.
    """
    data = store.read(name)
    require_parquet(name, data)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        metadata = file.metadata.metadata or {}
        footer = decode(metadata[b"stockstream"])
    except BROKEN as error:
        raise ArchiveError(f"{name} is not {kind}: {one_line(error)}") from error
    require_keys(name, data, metadata)
    return footer, file


def read_object(store: Store, name: str, decode: Callable[[bytes], Counting], kind: str) -> tuple[Counting, pa.Table]:
    """An object's footer and all its rows, as many as the footer counts. For small objects. Raises as `open_object`."""
    footer, file = open_object(store, name, decode, kind)
    try:
        table = file.read(use_threads=False)
    except BROKEN as error:
        raise ArchiveError(f"{name} cannot be read: {one_line(error)}") from error
    if table.num_rows != footer.rows:
        raise ArchiveError(f"{name} has {counted(table.num_rows, 'row')}, but its footer counts {footer.rows}")
    return footer, table


def canonical(name: str, data: bytes, encoded: bytes) -> None:
    """Raises `ArchiveError` if the bytes of a small object are not what is made of its content."""
    if data != encoded:
        raise ArchiveError(f"{name} is not as it was written: bytes of it have changed")


