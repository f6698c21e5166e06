"""Names of the archive's objects, and the records in its chains."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
MAX_EPOCH_HOUR = 253_402_300_799_999 // HOUR_MS
"""The last hour of the year 9999."""
_NAME = re.compile(r"(?P<area>raw|processed/[a-z0-9_]+)/(?P<folder>date=\d{4}-\d\d-\d\d(?:/hour=\d\d)?)/"
                   r"(?P<log>[A-Za-z0-9._-]+)-(?P<partition>\d{5})-(?P<first>\d{20})\.(?:jsonl\.zst|parquet)")  # fmt: skip
LOG_OF_RAW = r"([A-Za-z0-9._-]+)-\d{5}-\d{20}\.jsonl\.zst$"
"""Finds the log id in the name of a raw object, in SQL."""
OF_A_RECORD = '"offset" IS NOT NULL'
"""In SQL: whether a line of a raw object is a record's. The one line of an object without records is not."""
REPAIRS = "repairs."
"""Begins the place of the log id in the names of objects of repaired bars; the Kafka time of the first record follows, epoch ms in hexadecimal."""
CHAIN_FOLDER = re.compile(r"[A-Za-z0-9._-]+-\d{5}")
LOG_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")


class FolderChange(msgspec.Struct, tag_field="kind", tag="turn", frozen=True):
    """From offset `first` on, the chain's objects are in `folder`. (Stored with the kind `turn`.)"""

    first: int
    folder: str


class Lost(msgspec.Struct, tag_field="kind", tag="lost", frozen=True):
    """Retention deleted the offsets `first` to `through` before they were archived."""

    first: int
    through: int


@dataclass(frozen=True, slots=True)
class Name:
    """The parts of an object's name."""

    area: str
    folder: str
    log: str
    partition: int
    first: int


def folder_of_hour(hour: int) -> str:
    """`date=YYYY-MM-DD/hour=HH` of an epoch hour; an hour outside the years 1970 to 9999 counts as the nearest hour inside."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=min(max(hour, 0), MAX_EPOCH_HOUR))
    return f"date={moment:%Y-%m-%d}/hour={moment:%H}"


def hour_of_folder(folder: str) -> int:
    """The epoch hour of `date=YYYY-MM-DD/hour=HH`, the folder of a raw object."""
    day, _, hour = folder.removeprefix("date=").partition("/hour=")
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC, hour=int(hour or 0)).timestamp()) * 1_000 // HOUR_MS


def folder_of_day(day: int) -> str:
    """`date=YYYY-MM-DD` of a day, which counts from 1970; a day outside the years 1970 to 9999 counts as the nearest day inside."""
    return folder_of_hour(day * 24).partition("/")[0]


def raw_name(folder: str, log: str, partition: int, first: int) -> str:
    return f"raw/{folder}/{log}-{partition:05d}-{first:020d}.jsonl.zst"


def processed_name(raw: str) -> str:
    """The name of the ticks object whose existence marks the raw object's offsets as processed."""
    return raw.replace("raw/", "processed/ticks/", 1).replace(".jsonl.zst", ".parquet")


def parse_name(name: str) -> Name | None:
    """The parts of a name; None if it is not the name of an archive object."""
    match = _NAME.fullmatch(name)
    return Name(match["area"], match["folder"], match["log"], int(match["partition"]), int(match["first"])) if match else None
