"""The archive's layout and its chain of raw objects, without Kafka and without a clock.

    chains/{log}-{partition}/{first}.json                                where a chain turns to another folder, or begins with lost offsets
    raw/date=D/hour=H/{log}-{partition}-{first}.jsonl.zst                records as received; folder by the Kafka time of the first one
    processed/ticks/date=D/hour=H/{log}-{partition}-{first}.parquet      accepted ticks by event time
    processed/bars_1m/date=D/{log}-{partition}-{first}.parquet           parts of one-minute bars by event time

**Why no two writers can make a duplicate.** The raw objects of a partition form a chain: each covers the offsets first to last, holes included, and
begins where the one before ended. Which name comes next is a function of the chain so far and of what Kafka holds, and it is created only if absent.
So from any true state of the chain there is one next state, whoever makes it; a writer that loses reads what won and goes on behind it. The one
question that two writers can answer differently is whether an offset was lost to retention (one read it before, one after); so both answers meet at
one name too: see `Chain.append`.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Protocol

import cramjam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import UNSET, UnsetType

from stockstream.errors import ArchiveError
from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.stores import Store
from stockstream.wording import counted

HOUR_MS = 3_600_000
ROW_GROUP = 120_000
ZSTD_LEVEL = 1
"""Level 3 costs 1.4 times the time for 4 % less on ticks in JSON."""
TRAILER_MAGIC = 0x184D2A5C
"""One of zstd's sixteen numbers for a frame that readers skip."""
TRAILER_MARK = b"stockstream-1"
TAIL_BYTES = 8_192
MAX_EPOCH_HOUR = 253_402_300_799_999 // HOUR_MS
"""The last hour of the year 9999."""

_NAME = re.compile(r"(?P<area>raw|processed/ticks|processed/bars_1m)/(?P<folder>date=\d{4}-\d\d-\d\d(?:/hour=\d\d)?)/"
                   r"(?P<log>[A-Za-z0-9._-]+)-(?P<partition>\d{5})-(?P<first>\d{20})\.(?:jsonl\.zst|parquet)")  # fmt: skip
_CHAIN = re.compile(r"[A-Za-z0-9._-]+-\d{5}")
_LOG = re.compile(r"[A-Za-z0-9._-]{1,100}")


class RawRecord(Protocol):
    """What we use of a consumed record: Kafka's offset and time (epoch ms), and the bytes."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Line(msgspec.Struct, gc=False, omit_defaults=True):
    """One line of a raw object."""

    partition: int
    offset: int
    timestamp: int
    key: str | UnsetType | None = UNSET
    value: str | UnsetType | None = UNSET
    key_base64: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET


class Tail(msgspec.Struct, frozen=True):
    """The last record of a chain: by it we know later whether Kafka still holds the same log."""

    offset: int
    crc32: int


class Extent(msgspec.Struct, frozen=True):
    """What a raw object says of itself, in its trailer: offsets `first` to `last`, of which `holes` (ranges, both ends included) hold nothing."""

    log: str
    partition: int
    first: int
    last: int
    count: int
    previous: str
    holes: tuple[tuple[int, int], ...]
    bytes: int
    crc32: int
    tail: Tail | None
    version: int = 1


class Turn(msgspec.Struct, tag_field="kind", tag="turn", frozen=True):
    """From `first` on the chain's objects are in `folder`."""

    first: int
    folder: str


class Lost(msgspec.Struct, tag_field="kind", tag="lost", frozen=True):
    """`first` to `through` had been deleted from Kafka before this writer archived them."""

    first: int
    through: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Encoded records of one Kafka hour: extents `start` to `last`, offsets without a record among them being holes.

    `expired`: the hole before the first record is one that retention made.
    """

    start: int
    offsets: Sequence[int]
    hour: int
    data: bytes
    expired: bool = False

    @property
    def last(self) -> int:
        return self.offsets[-1]

    @property
    def nbytes(self) -> int:
        return len(self.data) + (256 if isinstance(self.offsets, range) else 64 * len(self.offsets))


@dataclass(frozen=True, slots=True)
class Name:
    """The parts of an object's name."""

    area: str
    folder: str
    log: str
    partition: int
    first: int


_encode_lines = msgspec.json.Encoder().encode_lines
_decode_lines = msgspec.json.Decoder(Line).decode_lines
_encode_json = msgspec.json.Encoder().encode
_decode_extent = msgspec.json.Decoder(Extent).decode
_decode_entry: Callable[[bytes], Turn | Lost] = msgspec.json.Decoder(Turn | Lost).decode


# Lines


def encode(partition: int, records: Sequence[RawRecord], start: int | None = None) -> list[Piece]:
    """Records (ascending by offset, not empty) as pieces, one for each run of one Kafka hour.

    `start`: from here through the last record Kafka holds nothing else, so what is missing is a hole. Without it a gap among the records is unproven
    and parts the pieces. Raises `ArchiveError` where the offsets do not ascend.
    """
    offsets: Sequence[int] = [record.offset for record in records]
    times = [record.timestamp for record in records]
    whole = range(offsets[0], offsets[0] + len(offsets))
    if offsets == list(whole):
        offsets = whole
    elif any(a >= b for a, b in pairwise(offsets)):
        raise ArchiveError(f"partition {partition}: offsets do not ascend")
    known = offsets[0] if start is None else start
    if known > offsets[0]:
        raise ArchiveError(f"partition {partition}: offset {offsets[0]} where {known} is next")
    hour = min(times) // HOUR_MS
    if hour == max(times) // HOUR_MS and (start is not None or offsets is whole):
        return [Piece(known, offsets, hour, lines(partition, records))]
    hours = [time // HOUR_MS for time in times]
    pieces = []
    begun = 0
    for i in range(1, len(records) + 1):
        gap = start is None and i < len(records) and offsets[i] != offsets[i - 1] + 1
        if i == len(records) or hours[i] != hours[begun] or gap:
            pieces.append(Piece(known, offsets[begun:i], hours[begun], lines(partition, records[begun:i])))
            known = offsets[i] if gap else offsets[i - 1] + 1
            begun = i
    return pieces


def lines(partition: int, records: Sequence[RawRecord]) -> bytes:
    """The records as JSON lines, each value exactly as received: as a string where it is UTF-8, else in base64."""
    try:
        return _encode_lines([Line(partition, r.offset, r.timestamp, r.key.decode(), r.value.decode()) for r in records])  # type: ignore[union-attr]
    except (AttributeError, UnicodeDecodeError):        # the few with nulls or other bytes
        return _encode_lines([_any_line(partition, r) for r in records])


def _any_line(partition: int, record: RawRecord) -> Line:
    line = Line(partition, record.offset, record.timestamp)
    try:
        line.key = None if record.key is None else record.key.decode()
    except UnicodeDecodeError:
        line.key_base64 = base64.b64encode(record.key or b"").decode()
    try:
        line.value = None if record.value is None else record.value.decode()
    except UnicodeDecodeError:
        line.value_base64 = base64.b64encode(record.value or b"").decode()
    return line


def key_and_value(line: Line) -> tuple[bytes | None, bytes | None]:
    """The bytes that Kafka held."""
    return _bytes(line.key, line.key_base64), _bytes(line.value, line.value_base64)


def _bytes(text: str | UnsetType | None, encoded: str | UnsetType) -> bytes | None:
    if isinstance(encoded, str):
        return base64.b64decode(encoded)
    return text.encode() if isinstance(text, str) else None


def after(piece: Piece, offset: int) -> Piece | None:
    """The part of the piece beyond `offset`; None where there is none."""
    if piece.start > offset:
        return piece
    if piece.last <= offset:
        return None
    cut = bisect_right(piece.offsets, offset)
    data = piece.data if not cut else piece.data.split(b"\n", cut)[-1]
    return replace(piece, start=offset + 1, offsets=piece.offsets[cut:], data=data)


def through(piece: Piece, offset: int) -> Piece | None:
    """The part of the piece up to `offset`, which is included; None where no record is there."""
    cut = bisect_right(piece.offsets, offset)
    if not cut or cut == len(piece.offsets):
        return piece if cut else None
    return replace(piece, offsets=piece.offsets[:cut], data=b"\n".join([*piece.data.split(b"\n", cut)[:cut], b""]))


# Names


def folder_of_hour(hour: int) -> str:
    """`date=YYYY-MM-DD/hour=HH` of an epoch hour; hours outside of the years 1970 to 9999 count as the nearest inside."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=min(max(hour, 0), MAX_EPOCH_HOUR))
    return f"date={moment:%Y-%m-%d}/hour={moment:%H}"


def raw_name(folder: str, log: str, partition: int, first: int) -> str:
    return f"raw/{folder}/{log}-{partition:05d}-{first:020d}.jsonl.zst"


def processed_name(raw: str) -> str:
    """The ticks object that says that the raw object's offsets are processed."""
    return raw.replace("raw/", "processed/ticks/", 1).replace(".jsonl.zst", ".parquet")


def parse_name(name: str) -> Name | None:
    """The name's parts; None where it is not one of ours."""
    match = _NAME.fullmatch(name)
    return Name(match["area"], match["folder"], match["log"], int(match["partition"]), int(match["first"])) if match else None


def chains(store: Store) -> list[tuple[str, int]]:
    """Log id and partition of every chain, sorted."""
    found = {name.split("/")[1] for name in store.list("chains/")}
    return sorted((text[:-6], int(text[-5:])) for text in found if _CHAIN.fullmatch(text))


def chain_begins(store: Store, log: str, partition: int) -> int:
    """First offset that the chain's objects cover: 0, or what retention had left when the first of them was made."""
    begin = 0
    for name in store.list(f"chains/{log}-{partition:05d}/"):
        entry = _read_entry(store, name)
        if isinstance(entry, Turn) or entry.first != begin:
            break
        begin = entry.through + 1
    return begin


def _read_entry(store: Store, name: str) -> Turn | Lost:
    try:
        return _decode_entry(store.read(name))
    except msgspec.MsgspecError as error:
        raise ArchiveError(f"{name} cannot be read: {error}") from error


# Raw objects


def raw_object(log: str, partition: int, previous: str, pieces: Sequence[Piece]) -> tuple[Extent, bytes]:
    """One zstd frame of JSON lines, and behind it the trailer. The pieces tile: each begins behind the one before."""
    data = b"".join(piece.data for piece in pieces)
    offsets = np.concatenate([np.asarray(piece.offsets, np.int64) for piece in pieces])
    first, last = pieces[0].start, int(offsets[-1])
    before = np.concatenate([[first - 1], offsets[:-1]])
    at = np.flatnonzero(offsets - before > 1)
    holes = tuple((int(before[i]) + 1, int(offsets[i]) - 1) for i in at)
    end = data.rfind(b"\n", 0, -1) + 1
    extent = Extent(log, partition, first, last, len(offsets), previous, holes, len(data), zlib.crc32(data), Tail(last, zlib.crc32(data[end:])))
    return extent, bytes(cramjam.zstd.compress(data, level=ZSTD_LEVEL)) + _trailer(extent)


def hole_object(log: str, partition: int, previous: str, first: int, last: int, tail: Tail | None) -> tuple[Extent, bytes]:
    """An object without lines: nothing of `first` to `last` was left in Kafka."""
    extent = Extent(log, partition, first, last, 0, previous, ((first, last),), 0, 0, tail)
    return extent, bytes(cramjam.zstd.compress(b"", level=ZSTD_LEVEL)) + _trailer(extent)


def _trailer(extent: Extent) -> bytes:
    payload = _encode_json(extent)
    payload += struct.pack("<I", len(payload)) + TRAILER_MARK
    return struct.pack("<II", TRAILER_MAGIC, len(payload)) + payload


def read_extent(store: Store, name: str) -> Extent:
    """The object's trailer. Raises `ArchiveError` where it has none of ours, and what the store raises."""
    data = store.read(name, TAIL_BYTES)
    size = _payload_size(name, data)
    if size > len(data):
        data = store.read(name, size)
    return _extent(name, data)


def _payload_size(name: str, data: bytes) -> int:
    mark = len(TRAILER_MARK)
    if len(data) < mark + 4 or data[-mark:] != TRAILER_MARK:
        raise ArchiveError(f"{name} is not an object of ours: it has no trailer")
    return int(struct.unpack("<I", data[-mark - 4 : -mark])[0]) + 4 + mark


def _extent(name: str, data: bytes) -> Extent:
    size = _payload_size(name, data)
    try:
        return _decode_extent(data[len(data) - size : len(data) - 4 - len(TRAILER_MARK)])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} has a broken trailer: {error}") from error


def read_raw_object(store: Store, name: str) -> tuple[Extent, list[Line]]:
    """An object's trailer and lines, held against each other. Raises `ArchiveError` where they do not agree."""
    packed = store.read(name)
    extent = _extent(name, packed)
    size = _payload_size(name, packed) + 8
    try:
        data = bytes(cramjam.zstd.decompress(packed[:-size]))
        found = _decode_lines(data)
    except (cramjam.DecompressionError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} cannot be read: {error}") from error
    if (len(data), zlib.crc32(data), len(found)) != (extent.bytes, extent.crc32, extent.count):
        raise ArchiveError(f"{name}: its lines are not those of its trailer (bytes, checksum or count differ)")
    expect = extent.first
    holes = dict(extent.holes)
    for line in found:
        expect = holes.pop(expect, expect - 1) + 1
        if line.offset != expect or line.partition != extent.partition:
            raise ArchiveError(f"{name}: offset {line.offset} of partition {line.partition} where {expect} of {extent.partition} belongs")
        expect += 1
    if holes.pop(expect, expect - 1) != extent.last or holes:
        raise ArchiveError(f"{name}: its lines and holes do not cover {extent.first} to {extent.last}")
    return extent, found


class Chain:
    """The raw objects of one partition of one log, in order; blocking, for one thread at a time.

    `end` is the last offset covered (-1 before the first), `folder` where the newest object is, `tail` the newest record. A call that fails with
    `ArchiveUnavailable` may have had its effect: repeat it, or go on with other pieces that begin at `end` + 1.
    """

    def __init__(self, store: Store, log: str, partition: int) -> None:
        if not _LOG.fullmatch(log):
            raise ArchiveError(f"log id {log!r} cannot be part of a name")
        self.store, self.log, self.partition = store, log, partition
        self.end = -1
        self.folder: str | None = None
        self.tail: Tail | None = None
        self.newest = ""

    def open(self) -> None:
        """Finds the end: the newest turn, and in its folder the newest object."""
        for turn in self._turns():
            if self.folder is None:
                self.folder, self.end = turn.folder, turn.first - 1
            names = self.names(turn.folder, turn.first)
            if names:
                self._went_to(names[-1], read_extent(self.store, names[-1]))
                return
        if self.folder is None:
            self.end = chain_begins(self.store, self.log, self.partition) - 1

    def _entries(self) -> list[str]:
        return list(self.store.list(f"chains/{self.log}-{self.partition:05d}/"))

    def _turns(self) -> Iterator[Turn]:
        for name in reversed(self._entries()):
            entry = _read_entry(self.store, name)
            if isinstance(entry, Turn):
                yield entry

    def names(self, folder: str, first: int = 0) -> list[str]:
        """Raw objects of this chain in one folder, from the one that begins at `first` on."""
        prefix = f"raw/{folder}/{self.log}-{self.partition:05d}-"
        found = self.store.list(prefix, raw_name(folder, self.log, self.partition, first)[:-1])
        return [name for name in found if len(name) == len(prefix) + 20 + len(".jsonl.zst")]

    def backwards(self) -> Iterator[str]:
        """Names of the chain's raw objects, the newest first."""
        before: int | None = None
        for turn in self._turns():
            for name in reversed(self.names(turn.folder, turn.first)):
                parsed = parse_name(name)
                if parsed and (before is None or parsed.first < before):
                    yield name
            before = turn.first

    def append(self, pieces: Sequence[Piece]) -> None:
        """Adds one object with these pieces, or finds that another writer was first: `end` says what is covered then.

        The pieces tile from `end` + 1 on. An object goes to the folder of its first record's hour; where that is another than the folder before, an entry in
        `chains/` is made first, so that a chain can be followed. Where retention took offsets from the object's beginning, another writer might
        still hold them: in the same folder its object would have the very name that ours gets; in another one it needs a turn, whose name we
        take by an entry of our own.
        """
        first = pieces[0].start
        if first != self.end + 1:
            raise ArchiveError(f"partition {self.partition}: an object from {first} on cannot follow {self.end}")
        wanted = folder_of_hour(pieces[0].hour)
        lost = pieces[0].offsets[0] - 1
        if pieces[0].expired and lost >= first:
            if not self._lose(first, lost):
                return
            if self.folder != wanted:
                self._create(*hole_object(self.log, self.partition, self.newest, first, lost, self.tail))
                return
        elif self.folder != wanted and not self._turn(first, wanted):
            return
        extent, data = raw_object(self.log, self.partition, self.newest, pieces)
        self._create(extent, data)

    def append_hole(self, last: int) -> None:
        """Records that `end` + 1 to `last` are lost to retention, where no record behind them is at hand."""
        first = self.end + 1
        if self._lose(first, last) and self.end < first:
            self._create(*hole_object(self.log, self.partition, self.newest, first, last, self.tail))

    def _lose(self, first: int, last: int) -> bool:
        """Takes the turn's name. False where the chain's end moved or cannot move here any more; else an object in `folder` comes next."""
        entry = self._enter(Lost(first, last))
        if isinstance(entry, Turn):
            self.folder = entry.folder
        elif self.folder is None:
            self.end = entry.through
            return False
        return True

    def _turn(self, first: int, folder: str) -> bool:
        entry = self._enter(Turn(first, folder))
        if isinstance(entry, Turn):
            self.folder = entry.folder
            return True
        if self.folder is None:
            self.end = entry.through
        else:
            self._create(*hole_object(self.log, self.partition, self.newest, entry.first, entry.through, self.tail))
        return False

    def _enter(self, entry: Turn | Lost) -> Turn | Lost:
        name = f"chains/{self.log}-{self.partition:05d}/{entry.first:020d}.json"
        if self.store.create(name, _encode_json(entry)):
            return entry
        return _read_entry(self.store, name)

    def _create(self, extent: Extent, data: bytes) -> None:
        name = raw_name(self.folder or "", self.log, self.partition, extent.first)
        if not self.store.create(name, data):
            extent = read_extent(self.store, name)
        self._went_to(name, extent)

    def _went_to(self, name: str, extent: Extent) -> None:
        self.newest, self.end, self.tail = name, extent.last, extent.tail


# Processed objects


class Made(msgspec.Struct, frozen=True):
    """In a processed object's footer, under `stockstream`: which raw offsets its rows come from.

    `objects` (in the ticks object beside the raw one): every object made of these offsets, with its rows. `missing`: offsets whose verdict by `clean` was
    no longer to be had.
    """

    log: str
    partition: int
    first: int
    last: int
    rows: int
    objects: dict[str, int] = {}
    missing: tuple[tuple[int, int], ...] = ()
    version: int = 1


_decode_made = msgspec.json.Decoder(Made).decode

STORED_TICKS = pa.schema([
    field.with_type(pa.timestamp("ms")) if field.name == "event_time" else field for field in TICKS_SCHEMA
] + [pa.field("partition", pa.int32()), pa.field("log", pa.string())])  # fmt: skip
"""Columns of `processed/ticks`: those of `ticks.clean`, `event_time` as a timestamp in UTC, and where the tick is in the raw log."""

STORED_BARS = pa.schema([
    ("symbol", pa.string()), ("source", pa.string()), ("minute", pa.timestamp("ms")),
    ("open", pa.float64()), ("high", pa.float64()), ("low", pa.float64()), ("close", pa.float64()),
    ("volume", pa.int64()), ("notional", pa.float64()), ("ticks", pa.int64()),
    ("first_second", pa.int64()), ("first_offset", pa.int64()), ("first_index", pa.int32()),
    ("last_second", pa.int64()), ("last_offset", pa.int64()), ("last_index", pa.int32()),
    ("partition", pa.int32()), ("log", pa.string()),
])  # fmt: skip
"""Columns of `processed/bars_1m`: what the ticks of one raw object add to a minute. A minute's bar is made of all its parts: see `BARS_SQL`."""

BARS_SQL = """
SELECT symbol, source, minute,
       min_by(open, row(first_second, log, first_offset, first_index)) AS open, max(high) AS high, min(low) AS low,
       max_by(close, row(last_second, log, last_offset, last_index)) AS close,
       CAST(sum(volume) AS BIGINT) AS volume, CASE WHEN sum(volume) > 0 THEN sum(notional) / sum(volume) END AS vwap,
       CAST(sum(ticks) AS BIGINT) AS ticks, "date"
FROM bar_parts GROUP BY symbol, source, minute, "date"
"""
"""One row for each symbol, source and minute with a price; late ticks, in a later part, revise it."""


def processed_objects(extent: Extent, raw: str, rows: pa.Table, missing: Sequence[tuple[int, int]] = ()) -> list[tuple[str, bytes]]:
    """Name and bytes of the objects made of one raw object, in the order of writing: the last one, beside the raw object, says that all are there.

    `rows`: the accepted ticks (`TICKS_SCHEMA`) of the extent's offsets, in any order. The same rows give the same objects, whoever makes them.
    """
    raw_folder = raw.removeprefix("raw/").rpartition("/")[0]
    stem = raw.rpartition("/")[2].removesuffix(".jsonl.zst") + ".parquet"
    rows = rows.sort_by([(name, "ascending") for name in ("symbol", "event_time", "offset", "index")])
    parts: list[tuple[str, pa.Table, pa.Schema]] = []
    for hour, table in _by(rows, HOUR_MS):
        parts.append((f"processed/ticks/{folder_of_hour(hour)}/{stem}", _stored_ticks(table, extent), STORED_TICKS))
    bars = _bars(rows, extent)
    for day, table in _by(bars, 24 * HOUR_MS, "minute"):
        parts.append((f"processed/bars_1m/{folder_of_hour(day * 24).partition('/')[0]}/{stem}", table, STORED_BARS))
    main = f"processed/ticks/{raw_folder}/{stem}"
    if all(name != main for name, _, _ in parts):
        parts.append((main, _stored_ticks(rows.slice(0, 0), extent), STORED_TICKS))
    parts.sort(key=lambda part: part[0] == main)
    objects = {name: table.num_rows for name, table, _ in parts}
    made = Made(extent.log, extent.partition, extent.first, extent.last, 0)
    return [
        (name, _parquet(table.cast(schema), msgspec.structs.replace(made, rows=table.num_rows, objects=objects, missing=tuple(missing)) if name == main
                        else msgspec.structs.replace(made, rows=table.num_rows)))
        for name, table, schema in parts
    ]  # fmt: skip


def _by(rows: pa.Table, span: int, column: str = "event_time") -> Iterator[tuple[int, pa.Table]]:
    if not rows.num_rows:
        return
    of = rows.column(column).to_numpy() // span
    for value in np.unique(of):
        yield int(value), rows.filter(pa.array(of == value))


def _stored_ticks(rows: pa.Table, extent: Extent) -> pa.Table:
    return rows.append_column("partition", pa.repeat(pa.scalar(extent.partition, pa.int32()), rows.num_rows)).append_column(
        "log", pa.repeat(pa.scalar(extent.log, pa.string()), rows.num_rows)
    )


def _bars(rows: pa.Table, extent: Extent) -> pa.Table:
    event_time = rows.column("event_time").to_numpy()
    size = rows.column("size").fill_null(0).to_numpy()
    price = rows.column("price").to_numpy()
    rows = rows.append_column("second", pa.array(event_time // 1000)).append_column("minute", pa.array(event_time // 60_000 * 60_000))
    rows = rows.append_column("notional", pa.array(np.nan_to_num(price) * size)).filter(pc.is_valid(rows.column("price")))
    rows = rows.sort_by([(name, "ascending") for name in ("symbol", "source", "second", "offset", "index")])
    first_and_last = [(name, which) for which in ("first", "last") for name in ("second", "offset", "index")]
    bars = rows.group_by(["symbol", "source", "minute"], use_threads=False).aggregate(
        [("price", "first"), ("price", "max"), ("price", "min"), ("price", "last"), ("size", "sum"), ("notional", "sum"), ("price", "count"), *first_and_last]
    )
    columns = ["symbol", "source", "minute", "price_first", "price_max", "price_min", "price_last", "size_sum", "notional_sum", "price_count"]
    bars = bars.select(columns + [f"{name}_{which}" for name, which in first_and_last])
    return _stored_ticks(bars, extent).rename_columns(STORED_BARS.names)


def _parquet(table: pa.Table, made: Made) -> bytes:
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({b"stockstream": _encode_json(made)})
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return bytes(sink.getvalue())


def read_made(store: Store, name: str) -> Made:
    """A processed object's footer. Raises `ArchiveError` where it is none of ours, or does not hold the rows that it says."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(store.read(name)))
        made = _decode_made((metadata.metadata or {})[b"stockstream"])
    except (pa.ArrowException, KeyError, msgspec.MsgspecError) as error:
        raise ArchiveError(f"{name} is not a processed object of ours: {error}") from error
    if metadata.num_rows != made.rows:
        raise ArchiveError(f"{name} holds {counted(metadata.num_rows, 'row')}, and its footer says {made.rows}")
    return made


def unprocessed(chain: Chain) -> list[str]:
    """Names of the newest raw objects that have no processed object yet, the oldest first."""
    found: list[str] = []
    for name in chain.backwards():
        if chain.store.size(processed_name(name)) is not None:
            break
        found.append(name)
    return found[::-1]
