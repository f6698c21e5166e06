"""The state records of `aggregate`: buckets of closed seconds, and a checkpoint.

A bucket record holds one or several seconds of one source, counted through the closing at raw offset `through`. The checkpoint has the raw offset through
which the log is counted, where reading goes on, and what of each source is closed. It may be too large for one message (1,000 sources with names of 384
bytes): it is split then, and two slots take turns, so that pieces of one checkpoint never replace those of the one before.

Keys are msgpack arrays: `[source, "one" or "run", slot of its first second, piece, term]` and `["head", term, slot, piece]`; version 1 had `["head", term]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

import msgspec

from stockstream.errors import StateError
from stockstream.transforms.changelog_index import Range
from stockstream.transforms.cleaning.limits import MAX_INT, MAX_TIME
from stockstream.transforms.versioned import Stored, by_slot, joined, pack, pieces_in_slot, require_known, unpack, version_of

FORMAT = 3
"""Up to 2, buckets have whole shares only."""
FIRST_STORED = ("open", "high", "low", "close", "bid", "ask", "bid_size", "ask_size", "quotes", "volume", "ticks", "notional")
"""The fields of buckets that name none."""
STORED = (*FIRST_STORED, "volume_part", "accrued", "gap_s", "price_before_gap", "new_series", "away_s")
"""What ticks contribute to a second: the fields of a bucket, in this order."""

_Second = Annotated[int, msgspec.Meta(ge=-1, le=MAX_TIME // 1000)]
_Offset = Annotated[int, msgspec.Meta(ge=-1, le=MAX_INT - 1)]


class Second(msgspec.Struct, array_like=True, gc=False):
    """A second's symbols, and its fields one after the other, 8 bytes each."""

    second: _Second
    symbols: list[str]
    data: bytes


class Bucket(Stored):
    """Some seconds of a source."""

    through: _Offset
    log: str
    source: str
    seconds: list[Second]
    fields: tuple[str, ...] = FIRST_STORED
    """What `data` holds."""


class RingProgress(msgspec.Struct, array_like=True, gc=False):
    """A source's ring in a checkpoint."""

    closed: _Second = -1
    """The last closed second."""
    counted_through: _Offset = -1
    """Offset of the last closing."""
    stored: _Second = -1
    """The newest second that has a bucket."""
    series_offset: _Offset = -1
    """First raw offset of the source's present series."""
    touched: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME)] = 0
    """The log's time (epoch ms) when the source was last in a frame; 0: the next that is known."""


class Checkpoint(Stored):
    """How far a partition is counted."""

    last: _Offset
    """Offset of the last closing."""
    log: str
    resume_raw: _Offset = msgspec.field(name="resume")
    """First raw offset whose effect is not stored."""
    resume_input: _Offset = 0
    """Offset in `ticks.clean` of the frame that first brought it."""
    sent_from: _Offset = -1
    sources: dict[str, RingProgress] = msgspec.field(default_factory=dict)
    ranges: list[Range] = msgspec.field(default_factory=list)
    slot: int = 0


class _Bucket1(msgspec.Struct, array_like=True):
    through: _Offset
    log: str
    source: str
    seconds: list[Second]


class _Checkpoint1(msgspec.Struct, array_like=True):
    last: _Offset
    log: str
    resume_raw: _Offset = msgspec.field(name="resume")
    resume_input: _Offset
    sent_from: _Offset
    sources: dict[str, RingProgress]
    ranges: list[Range]


class Restored(NamedTuple):
    """What a restart uses of a partition's records: those of the newest log."""

    log: str
    checkpoint: Checkpoint | None
    buckets: list[tuple[Bucket, int]]
    """With their offsets in the changelog."""


_FAULTS = (msgspec.MsgspecError, ValueError, IndexError, TypeError, RecursionError)
_pack = msgspec.msgpack.Encoder().encode
_key = msgspec.msgpack.Decoder(list[str | int]).decode
_bucket = msgspec.msgpack.Decoder(Bucket).decode
_bucket_1 = msgspec.msgpack.Decoder(_Bucket1).decode


def bucket_record(key: list[str | int], term: int, bucket: Bucket) -> tuple[bytes, bytes]:
    return _pack([*key, term]), pack(bucket)


def checkpoint_records(checkpoint: Checkpoint, term: int) -> list[tuple[bytes, bytes]]:
    """The checkpoint in as many records as it needs."""
    return pieces_in_slot(pack(checkpoint), FORMAT, lambda number: _pack(["head", term, checkpoint.slot, number]))


def bucket_of(value: bytes) -> Bucket:
    """The bucket in a record of any known version, its `data` as STORED has it. Raises `StateError` for newer ones, one of _FAULTS where it is none."""
    if version_of(value) < 2:
        first = _bucket_1(value)
        bucket = Bucket(v=FORMAT, through=first.through, log=first.log, source=first.source, seconds=first.seconds)
    else:
        require_known(version_of(value), FORMAT)
        bucket = _bucket(value)
    if not bucket.seconds:
        raise ValueError("a bucket without seconds")
    size = 8 * len(bucket.fields)
    if any(len(one.data) != size * len(one.symbols) for one in bucket.seconds):
        raise ValueError("a bucket whose fields have not as many values as it has symbols")
    return bucket if bucket.fields == STORED else _with_our_fields(bucket)


def _with_our_fields(bucket: Bucket) -> Bucket:
    """Fields that another version left out are those of nothing heard: zeros."""
    places = {name: number for number, name in enumerate(bucket.fields)}
    for one in bucket.seconds:
        width = 8 * len(one.symbols)
        one.data = b"".join(one.data[places[name] * width : (places[name] + 1) * width] if name in places else bytes(width) for name in STORED)
    return msgspec.structs.replace(bucket, fields=STORED)


def checkpoint_of(value: bytes) -> Checkpoint:
    """The checkpoint in a whole value of any known version."""
    if version_of(value) >= 2:
        return unpack(Checkpoint, value, FORMAT)
    first = msgspec.msgpack.decode(value, type=_Checkpoint1)
    return Checkpoint(
        v=FORMAT, last=first.last, log=first.log, resume_raw=first.resume_raw, resume_input=first.resume_input, sent_from=first.sent_from,
        sources=first.sources, ranges=first.ranges,
    )  # fmt: skip


def is_checkpoint(key: bytes) -> bool:
    """Whether a key is one of a checkpoint, or of a piece of one."""
    try:
        kind, *place = _key(key)
    except (msgspec.MsgspecError, ValueError):
        return False
    return kind == "head" and len(place) in (1, 3) and all(isinstance(number, int) for number in place)


def progress(checkpoint: Checkpoint) -> tuple[str, int, int]:
    """Orders checkpoints: the one of the state that counts further is greater."""
    return checkpoint.log, checkpoint.last, checkpoint.resume_raw


def checkpoints_in(records: Iterable[tuple[bytes, bytes]]) -> list[Checkpoint]:
    """The checkpoints that are whole among these records of checkpoints."""
    whole = (joined(slot.values()) for slot in by_slot(records, lambda key: tuple(_key(key)[:3])).values())
    return [checkpoint_of(value) for value in whole if value is not None]


def readable(key: bytes, value: bytes) -> str:
    """Why a record is of no use; empty where it can be read. Raises `StateError` where a newer stockstream wrote it."""
    try:
        if not is_checkpoint(key):
            source, kind, *place = _key(key)
            if kind not in ("one", "run") or len(place) != 3 or not all(isinstance(number, int) for number in place):
                return "no key of a record of aggregate"
            bucket = bucket_of(value)
            return "" if bucket.source == source else "a bucket of another source than its key"
        require_known(version_of(value), FORMAT)
        whole = joined([value])
        if whole is not None:
            checkpoint_of(whole)
    except _FAULTS as error:
        return f"no record of aggregate: {error}"
    return ""


def restored(partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int] | None) -> Restored:
    """Raises `StateError` where a record cannot be read."""
    try:
        checkpoints = checkpoints_in((key, value) for key, value in records.items() if is_checkpoint(key))
        buckets = [(bucket_of(value), offsets[key] if offsets else 0) for key, value in records.items() if not is_checkpoint(key)]
    except _FAULTS as error:
        raise StateError(f"partition {partition}: a record of aggregate cannot be read: {error}") from error
    log = max([*(checkpoint.log for checkpoint in checkpoints), *(bucket.log for bucket, _ in buckets)], default="")
    checkpoint = max((one for one in checkpoints if one.log == log), key=progress, default=None)
    return Restored(log, checkpoint, [(bucket, offset) for bucket, offset in buckets if bucket.log == log and _counts(bucket, checkpoint)])


def _counts(bucket: Bucket, checkpoint: Checkpoint | None) -> bool:
    """Whether a bucket belongs to its source's present series.

    Buckets of a source that the checkpoint does not have belong to a dropped one, unless they count further than the checkpoint."""
    if checkpoint is None:
        return True
    source = checkpoint.sources.get(bucket.source)
    return bucket.through > checkpoint.last if source is None else bucket.through >= source.series_offset
