"""The state records of `detect`: open alerts in buckets by symbol, and a checkpoint.

A bucket holds the open alerts of the symbols whose CRC-32 has the same last eight bits, with the raw offset `through` which it counts. Only buckets that
changed are written. Where nothing but the `last` of alerts changed, the checkpoint carries that and the bucket is not written again. A bucket that became
empty is written once as empty.

The checkpoint names the non-empty buckets, each by the `through` of its record. A restart takes of each bucket the record with the highest `through`, among
the one that the checkpoint names and those beyond the checkpoint. So a batch that was written in part is no fault: buckets may be beyond the checkpoint, and
the detector skips what they have counted. State is a function of the log, so two records of a bucket with the same `through` hold the same.

Keys are `partition/log/term/head` and `partition/log/term/open/bucket/slot/piece`. The two slots of a bucket take turns: pieces of one record never replace
those of the record before. Version 1 had one record `partition/log/term/open` with all alerts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from stockstream.errors import StateError
from stockstream.records import TRADE_GAPS
from stockstream.transforms.changelog_index import Range
from stockstream.transforms.cleaning.limits import MAX_INT, MAX_TIME
from stockstream.transforms.versioned import Stored, by_slot, joined, pack, pieces_in_slot, require_known, unpack, version_of

FORMAT = 2
BUCKETS = 256
MAX_LASTS = 50_000
"""Of one checkpoint; each takes at most five bytes. Buckets beyond that are written again."""

_FIRST_COLUMNS = (
    "source", "second", "close", "volume", "ticks", "mid", "price_60s", "mean_5m", "vwap_5m", "volume_5m", "high_5m", "low_5m",
    "return_std_5m", "ticks_5m", "seconds_5m", "quality", "partition", "offset",
)  # fmt: skip
"""Those of buckets that name none."""
WINDOW_COLUMNS = (*_FIRST_COLUMNS, "accrued_5m", *TRADE_GAPS)
"""What of the row an alert carries as its `window`. The source is stored once for a bucket, and first here."""

Severity = Literal["warning", "critical"]
_Second = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME // 1000)]
_Offset = Annotated[int, msgspec.Meta(ge=-1, le=MAX_INT - 1)]


class OpenAlert(msgspec.Struct, gc=False):
    """An alert not closed yet: the values last sent, and the last second (epoch s) with the condition. `window` has the values of WINDOW_COLUMNS."""

    symbol: str
    rule: str
    source: str
    opened: int
    last: int
    severity: Severity
    value: float
    baseline: float
    threshold: float
    window: tuple[Any, ...]


class _Alert(msgspec.Struct, array_like=True, gc=False):
    """An alert in a bucket. `source` is a place in the bucket's `sources`, `window` has its `columns`."""

    symbol: str
    rule: str
    source: int
    opened: _Second
    last: _Second
    severity: Severity
    value: float
    baseline: float
    threshold: float
    window: tuple[int | float | str | None, ...]


class Bucket(Stored):
    """The open alerts of some symbols, by symbol and rule, counted through raw offset `through`."""

    through: _Offset
    log: str
    number: int
    slot: int = 0
    columns: tuple[str, ...] = _FIRST_COLUMNS[1:]
    sources: list[str] = msgspec.field(default_factory=list)
    alerts: list[_Alert] = msgspec.field(default_factory=list)


class Checkpoint(Stored):
    """How far a detector has counted."""

    through: _Offset
    log: str
    resume_input: _Offset = msgspec.field(name="resume")
    """Offset in `windows` to go on from."""
    ranges: list[Range] = msgspec.field(default_factory=list)
    buckets: dict[int, int] | None = None
    """Non-empty buckets, and what their records count through. None in version 1: the newest record counts."""
    lasts: dict[int, list[int]] = msgspec.field(default_factory=dict)
    """Of buckets whose record is older in nothing else: `last` less `opened` of each alert, in the record's order."""
    sources: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    """Of each source with open alerts, by `source_id`: the log clock (epoch ms) when it was last in a frame (0: not known) and its last closed second."""


class _Checkpoint1(msgspec.Struct, array_like=True):
    through: _Offset
    log: str
    resume: _Offset
    ranges: list[Range] = msgspec.field(default_factory=list)


class _Alert1(msgspec.Struct):
    symbol: str
    rule: str
    source: str
    opened: _Second
    last: _Second
    severity: Severity
    value: float
    baseline: float
    threshold: float
    window: dict[str, Any]


class _Open1(msgspec.Struct, array_like=True):
    through: _Offset
    log: str
    alerts: list[_Alert1]


class Kept(NamedTuple):
    """A bucket as a restart finds it."""

    through: int
    """The log is counted up to here: at least the checkpoint's."""
    stored: int
    """What its record counts through."""
    slot: int
    alerts: list[OpenAlert]
    outdated: bool
    """Whether its record has an older format and is to be written again."""
    touched: bool
    """Whether the checkpoint has the `last` of its alerts."""
    keys: list[bytes]
    """Of its records."""


def bucket_of(symbol: str) -> int:
    return zlib.crc32(symbol.encode()) % BUCKETS


def source_id(source: str) -> int:
    """56 bits that stand in a checkpoint for a source, whose name may be long."""
    return int.from_bytes(hashlib.blake2b(source.encode(), digest_size=7).digest(), "big")


def bucket_records(place: str, bucket: Bucket) -> list[tuple[bytes, bytes]]:
    """The records of a bucket under a key's first part `partition/log/term`."""
    return pieces_in_slot(pack(bucket), FORMAT, lambda number: f"{place}/open/{bucket.number}/{bucket.slot}/{number}".encode())


def bucket(through: int, log: str, number: int, slot: int, alerts: Iterable[OpenAlert], version: int = FORMAT) -> Bucket:
    """The stored form of alerts."""
    sources: dict[str, int] = {}
    kept = [
        _Alert(
            a.symbol, a.rule, sources.setdefault(a.source, len(sources)), a.opened, a.last, a.severity, a.value, a.baseline, a.threshold, a.window[1:],
        )
        for a in alerts
    ]  # fmt: skip
    return Bucket(v=version, through=through, log=log, number=number, slot=slot, columns=WINDOW_COLUMNS[1:], sources=list(sources), alerts=kept)


def alerts_in(bucket: Bucket) -> list[OpenAlert]:
    """The alerts of a bucket. Raises `IndexError` where one names no source, `msgspec.ValidationError` where one is there twice or in the wrong bucket."""
    has_our_columns = bucket.columns == WINDOW_COLUMNS[1:]
    out = []
    known: set[tuple[str, str]] = set()
    for a in bucket.alerts:
        if (a.symbol, a.rule) in known or bucket_of(a.symbol) != bucket.number:
            raise msgspec.ValidationError(f"bucket {bucket.number} has an alert twice, or one of a symbol of another bucket")
        known.add((a.symbol, a.rule))
        source = bucket.sources[a.source]
        if has_our_columns:
            window = (source, *a.window)
        else:
            values: dict[str, Any] = dict(zip(bucket.columns, a.window, strict=False))
            window = (source, *(values.get(name) for name in WINDOW_COLUMNS[1:]))
        out.append(OpenAlert(a.symbol, a.rule, source, a.opened, a.last, a.severity, a.value, a.baseline, a.threshold, window))
    return out


def _upgraded(value: bytes) -> list[Bucket]:
    """All buckets, from a record of version 1."""
    record = msgspec.msgpack.decode(value, type=_Open1)
    alerts: dict[int, list[OpenAlert]] = {}
    for a in sorted(record.alerts, key=lambda a: (a.symbol, a.rule)):
        window = tuple(a.window.get(name) for name in WINDOW_COLUMNS)
        one = OpenAlert(a.symbol, a.rule, a.source, a.opened, a.last, a.severity, a.value, a.baseline, a.threshold, (a.source, *window[1:]))
        alerts.setdefault(bucket_of(a.symbol), []).append(one)
    return [bucket(record.through, record.log, number, 0, alerts.get(number, ()), 1) for number in range(BUCKETS)]


def checkpoint_of(value: bytes) -> Checkpoint:
    """The checkpoint in a record of any known version. Raises `StateError` for newer ones, `msgspec.MsgspecError` where it is none."""
    if version_of(value) >= 2:
        return unpack(Checkpoint, value, FORMAT)
    first = msgspec.msgpack.decode(value, type=_Checkpoint1)
    return Checkpoint(v=1, through=first.through, log=first.log, resume_input=first.resume, ranges=first.ranges)


def _name(key: bytes) -> tuple[bytes, ...]:
    """What follows partition, log and term in a key; empty where it is no such key. A log's id may have slashes."""
    parts = key.split(b"/")
    if parts[-1] in (b"head", b"open") and len(parts) >= 4:
        return (parts[-1],)
    if len(parts) >= 7 and parts[-4] == b"open" and all(part.isdigit() for part in parts[-3:]):
        return tuple(parts[-4:])
    return ()


def is_checkpoint(key: bytes) -> bool:
    return _name(key) == (b"head",)


def readable(key: bytes, value: bytes) -> str:
    """Why a record is of no use; empty where it can be read. Raises `StateError` where a newer stockstream wrote it."""
    name = _name(key)
    if not name:
        return "no key of a record of detect"
    try:
        version = version_of(value)
        require_known(version, FORMAT)
        if name[0] == b"head":
            checkpoint_of(value)
        elif len(name) == 1:
            if version == 1:
                for one in _upgraded(value):
                    alerts_in(one)
            else:
                return "a record of version 1 with a number of another"
        elif (whole := joined([value])) is not None:
            alerts_in(unpack(Bucket, whole, FORMAT))
    except (msgspec.MsgspecError, IndexError, UnicodeError, RecursionError) as error:
        return f"no record of detect: {error}"
    return ""


def restored(partition: int, records: Mapping[bytes, bytes]) -> tuple[str, tuple[Checkpoint, bytes] | None, dict[int, Kept]]:
    """The newest log of a partition's records, its highest checkpoint with its key, and the buckets by number. What is left out is empty.

    Raises `StateError` where a record cannot be read, or one that the checkpoint names is missing.
    """
    prefix = b"%d/" % partition
    checkpoints: list[tuple[Checkpoint, bytes]] = []
    buckets: list[Bucket] = []
    keys: dict[int, list[bytes]] = {}
    pieces: list[tuple[bytes, bytes]] = []
    try:
        for key, value in records.items():
            name = _name(key) if key.startswith(prefix) else ()
            if name == (b"head",):
                checkpoints.append((checkpoint_of(value), key))
            elif len(name) == 1:
                require_known(version_of(value), 1)
                buckets += _upgraded(value)
            elif name:
                pieces.append((key, value))
        for slot in by_slot(pieces, lambda key: key.rpartition(b"/")[0]).values():
            whole = joined(slot.values())
            if whole is not None:                                        # else its writer died in the middle of it: the other slot has the one before
                buckets.append(unpack(Bucket, whole, FORMAT))
                keys[id(buckets[-1])] = list(slot)
        log = max([*(one.log for one, _ in checkpoints), *(one.log for one in buckets)], default="")
        found = max((found for found in checkpoints if found[0].log == log), key=lambda found: (found[0].through, found[0].resume_input), default=None)
        checkpoint = found[0] if found is not None else None
        best: dict[int, Bucket] = {}
        for one in buckets:
            if one.log == log and _counts(one, checkpoint) and (one.number not in best or one.through > best[one.number].through):
                best[one.number] = one
        if checkpoint is not None and (missing := (checkpoint.buckets or {}).keys() - best.keys()):
            raise StateError(
                f"the state of detect for partition {partition} has lost {len(missing)} records that it names, the first bucket {min(missing)}: stop all "
                "workers and delete the changelog topic of detect; it then begins anew with what its input still holds"
            )
        return log, found, {number: _kept(one, checkpoint, keys.get(id(one), [])) for number, one in best.items()}
    except (msgspec.MsgspecError, IndexError, UnicodeError, RecursionError) as error:
        raise StateError(f"the state of detect for partition {partition} cannot be read: {error}") from error


def _counts(one: Bucket, checkpoint: Checkpoint | None) -> bool:
    if not 0 <= one.number < BUCKETS:
        return False
    if checkpoint is None or one.through > checkpoint.through:
        return True
    return one.v == 1 if checkpoint.buckets is None else checkpoint.buckets.get(one.number) == one.through


def _kept(one: Bucket, checkpoint: Checkpoint | None, keys: list[bytes]) -> Kept:
    alerts = alerts_in(one)
    through = one.through
    if checkpoint is not None and one.through <= checkpoint.through:
        through = checkpoint.through
        for alert, after in zip(alerts, checkpoint.lasts.get(one.number, ()), strict=False):
            alert.last = min(max(alert.opened, alert.opened + after), MAX_TIME // 1000)
    touched = bool(alerts) and through > one.through and checkpoint is not None and one.number in checkpoint.lasts
    return Kept(through, one.through, one.slot, alerts, one.v < FORMAT, touched, keys)
