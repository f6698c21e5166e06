"""What an archive has: raw records and ticks; and windows, alerts, predictions and outcomes, held against what a subscriber to the topics has seen."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stockstream.records import CORRECTION
from stockstream.sinks.archive.current import current
from stockstream.sinks.stores import FileStore
from stockstream.transforms.batch import RawRecord
from tests.faults.expected import Key

COLUMNS = {
    "windows": ("symbol", "second", "offset"), "alerts": ("id", "state", "as_of"), "predictions": ("id", "horizon_s"), "outcomes": ("id", "horizon_s"),
}  # fmt: skip


def archived_rows(root: Path, kind: str, ignored: Collection[int]) -> Counter[Key]:
    """How often each row is in the objects that count, by the key of a message; of a prediction, by its id, how often each horizon is."""
    found: Counter[Key] = Counter()
    store = FileStore(root)
    for entry in current(store, kind):
        table = pq.read_table(root / entry.name, columns=[*COLUMNS[kind], "partition"], partitioning=None)
        columns = [table.column(name) for name in (*COLUMNS[kind], "partition")]
        plain = [(column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist() for column in columns]
        found.update(tuple(row) for *row, partition in zip(*plain, strict=True) if partition not in ignored)
    if kind != "predictions":
        return found
    of_prediction: Counter[Key] = Counter()
    for (id_, _), count in found.items():
        of_prediction[(id_,)] = max(count, of_prediction[(id_,)])
    return of_prediction


def archived_topics(root: Path, published: Mapping[str, Mapping[Key, object]], ignored: Collection[int]) -> dict[str, tuple[set[Key], set[Key], set[Key]]]:
    """By topic: keys that were published and are not archived, that are archived more than once, and that are archived and were not published."""
    out = {}
    for kind in COLUMNS:
        found = archived_rows(root, kind, ignored)
        out[kind] = set(published[kind]) - set(found), {key for key, count in found.items() if count > 1}, set(found) - set(published[kind])
    return out


class _Line(msgspec.Struct):
    partition: int
    offset: int | None = None
    """None: the one line of an object without records."""
    value: str | None = None
    value_base64: str | None = None


def archived_records(root: Path, want: Mapping[Key, RawRecord]) -> tuple[Counter[Key], list[Key]]:
    """How often each (log, partition, offset) is in the raw objects, and which of them have other bytes; read here without the archive's own code."""
    got: Counter[Key] = Counter()
    wrong: list[Key] = []
    decoder = msgspec.json.Decoder(_Line)
    for path in sorted((root / "raw").rglob("*.jsonl.zst")):
        log = path.name.rsplit("-", 2)[0]
        with pa.input_stream(path, compression="zstd") as stream:
            text = stream.read()
        for line in text.splitlines():
            item = decoder.decode(line)
            if item.offset is None:
                continue
            key = (log, item.partition, item.offset)
            got[key] += 1
            value = base64.b64decode(item.value_base64) if item.value_base64 is not None else (item.value or "").encode()
            record = want.get(key)
            if record is not None and value != (record.value or b""):
                wrong.append(key)
    return got, wrong


def processed_ticks(root: Path) -> Counter[Key]:
    """How often each accepted tick (log, partition, offset, index) is in the processed objects that count."""
    got: Counter[Key] = Counter()
    for entry in current(FileStore(root), "ticks"):
        file = pq.ParquetFile(root / entry.name)
        table = file.read(columns=["log", "partition", "offset", "index", *(["flags"] if "flags" in file.schema_arrow.names else [])])
        if "flags" in table.column_names:                                # a correction has the place of the tick that revealed it
            table = table.filter(pc.equal(pc.bit_wise_and(pc.fill_null(table.column("flags"), 0), CORRECTION), 0))
        got.update(zip(*(table.column(name).to_pylist() for name in ("log", "partition", "offset", "index")), strict=True))
    return got
