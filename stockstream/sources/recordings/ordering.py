"""Puts the ticks of a recording into the order of their times: in memory, or by way of files where they are many."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stockstream.sources.recordings.chunks import Chunk

PIECE_TICKS = 2_000_000
"""How many ticks are sorted at a time, about: 200 MB."""


def sorted_by_time(chunks: Iterable[Chunk], bounds: Sequence[int], rows: int, *, newest_first: bool) -> Iterator[Chunk]:
    """The same ticks in the order of their times, in chunks of `rows`; equal times stay in the order of the file, or the reverse of it for `newest_first`.

    `bounds` are times that cut the recording into pieces, each of which fits in memory; without any it is one piece. Raises `OSError` if the disk is full.
    """
    if not bounds:
        yield from _sorted((_table(chunk) for chunk in chunks if len(chunk)), rows, newest_first=newest_first)
        return
    with tempfile.TemporaryDirectory(prefix="stockstream-sort-") as folder:
        pieces = [Path(folder) / str(number) for number in range(len(bounds) + 1)]
        _spread(chunks, np.array(bounds), pieces)
        for piece in pieces:
            if piece.exists():
                yield from _sorted(_stored(piece), rows, newest_first=newest_first)
                piece.unlink()


def bounds_of(samples: NDArray[np.int64], ticks: int) -> list[int]:
    """Times that cut a recording of so many ticks into pieces of about PIECE_TICKS, by some of its times."""
    pieces = -(-ticks // PIECE_TICKS)
    return np.unique(np.quantile(samples, np.arange(1, pieces) / pieces, method="lower")).tolist() if pieces > 1 else []


def _spread(chunks: Iterable[Chunk], bounds: NDArray[np.int64], pieces: Sequence[Path]) -> None:
    writers: dict[int, pa.RecordBatchStreamWriter] = {}
    files: list[pa.NativeFile] = []
    try:
        for chunk in chunks:
            piece = np.searchsorted(bounds, chunk.times, side="right")
            for number in np.unique(piece).tolist():
                batch = _table(chunk.take(np.flatnonzero(piece == number)))
                if number not in writers:
                    files.append(pa.OSFile(str(pieces[number]), "wb"))
                    writers[number] = pa.ipc.new_stream(files[-1], batch.schema)
                writers[number].write_batch(batch)
    finally:
        for writer in writers.values():
            writer.close()
        for file in files:
            file.close()


def _stored(piece: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(piece), "rb") as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def _table(chunk: Chunk) -> pa.RecordBatch:
    columns = {"symbol": chunk.symbols.cast(pa.string()), "time": pa.array(chunk.times), "price": pa.array(chunk.price), "size": pa.array(chunk.size)}
    columns |= {f"quote.{name}": pa.array(column) for name, column in chunk.quotes.items()}
    columns |= {f"text.{name}": column.cast(pa.string()) for name, column in chunk.texts.items()}
    return pa.RecordBatch.from_pydict(columns)


def _sorted(batches: Iterable[pa.RecordBatch], rows: int, *, newest_first: bool) -> Iterator[Chunk]:
    found = list(batches)
    if not found:
        return
    table = pa.Table.from_batches(found).combine_chunks()
    del found
    times = table.column("time").to_numpy()
    if newest_first:
        order = len(times) - 1 - np.argsort(times[::-1], kind="stable")
    else:
        order = np.argsort(times, kind="stable")
    for start in range(0, len(order), rows):
        yield _chunk(table.take(pa.array(order[start : start + rows])))


def _chunk(table: pa.Table) -> Chunk:
    def column(name: str) -> pa.Array:
        found = table.column(name).combine_chunks()
        return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)

    def of(prefix: str, read: Callable[[str], object]) -> dict[str, object]:
        return {name.removeprefix(prefix): read(name) for name in table.column_names if name.startswith(prefix)}

    def array(name: str) -> NDArray[np.float64]:
        return np.asarray(column(name).to_numpy(zero_copy_only=False))

    def text(name: str) -> pa.DictionaryArray:
        return pc.dictionary_encode(column(name))

    return Chunk(text("symbol"), column("time").to_numpy(), array("price"), array("size"), of("quote.", array), of("text.", text), [])  # type: ignore[arg-type]
