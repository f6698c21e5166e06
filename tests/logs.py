"""Logs of `ticks.raw` for tests: random ones with every quirk, and generated days."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stockstream.transforms.batch import RawRecord
from tests.requirements import NO_REAL_TRADES

SHARED = Path(__file__).resolve().parents[2] / "shared"
KAFKA_MS = 1 << 41
"""Kafka's time of the records of random logs: after all their ticks."""


def records_of(log: list[tuple[int, Any]]) -> list[RawRecord]:
    """Records of a model's log: [(offset, ticks or punctuation)]; a record of one tick is now an object, now a frame."""
    bare = [(offset, item[0] if isinstance(item, list) and len(item) == 1 and offset % 2 else item) for offset, item in log]
    return [RawRecord(offset, KAFKA_MS, json.dumps(item).encode()) for offset, item in bare]


def generated_day(seed: int = 7, seconds: int = 4_000, symbols: int = 6) -> pd.DataFrame:
    """Ticks in order of arrival with the quirks of real data, none of them late: equal trades in one millisecond, silences over 300 s, quotes without price,
    ticks out of order within the lateness. Columns symbol, event_time (epoch ms), price (NaN in a quote), size (a third with decimals), bid, ask."""
    rng = np.random.default_rng(seed)
    begin = 1_700_000_000
    parts = []
    for number in range(symbols):
        rate = (0.02, 0.3, 1.5, 4.0)[number % 4]
        count = int(rate * seconds)
        at = np.sort(rng.integers(0, seconds * 1000, count)) + begin * 1000
        quiet = rng.integers(0, max(1, seconds - 900), 2)
        for q in quiet:
            at = at[(at < (begin + q) * 1000) | (at >= (begin + q + rng.integers(290, 800)) * 1000)]
        price = np.round(100 * np.exp(np.cumsum(rng.normal(0, 2e-4, len(at)))), 2)
        frame = pd.DataFrame({"symbol": f"G{number}", "event_time": at, "price": price, "size": rng.integers(0, 900, len(at))})
        quote = rng.random(len(at)) < 0.2
        frame.loc[quote, ["price", "size"]] = [np.nan, 0]
        frame["bid"] = np.where(quote | (rng.random(len(at)) < 0.5), price - 0.01, np.nan)
        frame["ask"] = np.where(rng.random(len(at)) < 0.5, price + 0.01, np.nan)
        twins = frame[rng.random(len(at)) < 0.05]
        parts += [frame, twins]
    day = pd.concat(parts)
    more = np.random.default_rng(seed + 1)
    fraction = np.where((more.random(len(day)) < 0.3) & day.price.notna(), more.random(len(day)), 0.0)
    decimals = more.integers(1, 9, len(day))
    day["size"] = [round(size + part, places) for size, part, places in zip(day["size"].tolist(), fraction.tolist(), decimals.tolist(), strict=True)]
    arrival = day.event_time + rng.integers(0, 150, len(day))
    return day.iloc[np.argsort(arrival.to_numpy(), kind="stable")].reset_index(drop=True)


def real_day() -> tuple[Path, pd.DataFrame]:
    """The file of the real trades and its ticks (symbol, event_time in epoch ms, price, size); the test is skipped where it is not there."""
    path = SHARED / "data" / "trades_2013-10-07.parquet"
    if not path.exists():
        pytest.skip(NO_REAL_TRADES)
    trades = pd.read_parquet(path)
    event_time = trades.event_time.astype("datetime64[ms, UTC]").astype("int64")
    return path, pd.DataFrame({"symbol": trades.symbol.astype(str), "event_time": event_time, "price": trades.price, "size": trades["size"]})


def day_records(day: pd.DataFrame, source: str) -> list[RawRecord]:
    """The day as a log of one partition, closed by a punctuation."""
    records = []
    columns = [name for name in day.columns if name != "symbol"]
    for offset, row in enumerate(day.to_dict("records")):
        tick = {"symbol": str(row["symbol"]), "source": source, **{name: None if pd.isna(row[name]) else row[name] for name in columns}}
        records.append(RawRecord(offset, int(row["event_time"]) + 200, json.dumps(tick).encode()))
    newest = int(day.event_time.max())
    records.append(RawRecord(len(records), newest + 2000, json.dumps({"punctuate": newest // 1000, "source": source}).encode()))
    return records


def cuts(rng: random.Random, records: list[Any], longest: int = 12) -> list[list[Any]]:
    """The records in chunks of random length."""
    out, at = [], 0
    while at < len(records):
        size = rng.randrange(1, longest)
        out.append(records[at : at + size])
        at += size
    return out
