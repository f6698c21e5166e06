"""A small archive that has everything: all areas, raw records that are not UTF-8, revisions, repaired bars, an hour and a day that were compacted.

The records of 2023-10-10, hours 12 and 13. Objects that compactions replaced are there again, as
after a worker that was frozen wrote them a second time.
"""

from __future__ import annotations

import itertools
import json
import random
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from stockstream.records import TICKS_SCHEMA, Repair
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.compacting import compact_folder
from stockstream.sinks.archive.compactions import Range
from stockstream.sinks.archive.layout import HOUR_MS
from stockstream.sinks.archive.processed import parquet
from stockstream.sinks.archive.raw_objects import encode_json
from stockstream.sinks.archive.repaired import Bar, name_of, repaired_object
from stockstream.sinks.archive.schemas import STORED
from stockstream.sinks.stores import Store
from tests.archives import Record, append

DATE = "2023-10-10"
T0 = int(datetime(2023, 10, 10, 12, 50, tzinfo=UTC).timestamp() * 1000)
SECONDS = 1_200
SYMBOLS = {"AAPL": 178.4, "MSFT": 331.2, "TSLA": 263.6}
LOG, PARTITION = "18b1a2b3c4d-0a1b2c3d", 3


def fill(store: Store) -> None:
    ticks = _ticks()
    _raw_ticks_and_bars(store, ticks)
    rows = _windows(ticks)
    _topic(store, "windows", "date={date}/hour={hour}", "time", rows)
    predictions, outcomes = _predictions(rows)
    _topic(store, "predictions", "date={date}/hour={hour}", "as_of", predictions)
    _topic(store, "outcomes", "date={date}/hour={hour}", "as_of", outcomes)
    _topic(store, "alerts", "date={date}", "as_of", _alerts(rows))
    bar = {"symbol": "TSLA", "source": "alpha_vantage", "open": 263.0, "high": 264.5, "low": 262.5, "close": 264.0}
    repairs = [Bar(number, T0, Repair(**bar, minute=T0 - (5 - number) * 60_000, volume=1_000 + number)) for number in range(2)]  # type: ignore[arg-type]
    store.create(name_of(PARTITION, repairs[0]), repaired_object(PARTITION, repairs))
    for area, folder in (("ticks", f"date={DATE}/hour=12"), ("windows", f"date={DATE}/hour=12"), ("alerts", f"date={DATE}"), ("bars_1m", f"date={DATE}")):
        _compact(store, area, folder)


def _ticks() -> list[dict[str, Any]]:
    chance = random.Random(20)
    prices, found = dict(SYMBOLS), []
    for second in range(SECONDS):
        for symbol in SYMBOLS:
            if symbol == "TSLA" and chance.random() < 0.5:
                continue
            prices[symbol] *= 1 + chance.gauss(0, 2e-4)
            at, price = T0 + second * 1000 + chance.randrange(1000), round(prices[symbol], 2)
            quote = {"bid": round(price - 0.02, 2), "ask": round(price + 0.03, 2), "bid_size": 3.0, "ask_size": 5.0}
            trade = {"price": price, "size": chance.choice([1.0, 100.0, 2.5]), "trade_id": f"t{second}"}
            found.append({"symbol": symbol, "source": "yahoo", "event_time": at, **(quote if second % 4 == 3 else trade)})
    for offset, tick in enumerate(found):
        tick |= {"offset": offset, "index": 0}
    return found


def _raw_ticks_and_bars(store: Store, ticks: list[dict[str, Any]]) -> None:
    chain = Chain(store, LOG, PARTITION)
    chain.open()
    edge = next(number for number, tick in enumerate(ticks) if tick["event_time"] >= _next_hour(T0))
    no_tick = edge + 5                                                      # a record that is not UTF-8
    cuts = [0, edge // 3, 2 * edge // 3, edge, (edge + len(ticks)) // 2, len(ticks)]
    for begin, end in itertools.pairwise(cuts):
        some = ticks[begin:end]
        values = [b"\xff\xfe" if tick["offset"] == no_tick else json.dumps(tick).encode() for tick in some]
        records = [Record(tick["offset"], tick["event_time"] + 40, value, tick["symbol"].encode()) for tick, value in zip(some, values, strict=True)]
        append(chain, records, pa.Table.from_pylist([tick for tick in some if tick["offset"] != no_tick], TICKS_SCHEMA))


def _next_hour(ms: int) -> int:
    return (ms // HOUR_MS + 1) * HOUR_MS


def _windows(ticks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for tick in ticks:
        key = tick["symbol"], tick["event_time"] // 1000
        price = tick.get("price") or (tick["bid"] + tick["ask"]) / 2
        row = found.setdefault(key, {
            "symbol": key[0], "source": "yahoo", "second": key[1], "time": key[1] * 1000, "open": price, "high": price, "low": price, "volume": 0.0, "ticks": 0,
            "quotes": 0, "mean_5m": price, "quality": "", "revised": False,
        })  # fmt: skip
        row |= {"high": max(row["high"], price), "low": min(row["low"], price), "close": price, "price": price, "offset": tick["offset"]}
        row["volume"] += tick.get("size") or 0.0
        if "bid" in tick:
            row |= {"bid": tick["bid"], "ask": tick["ask"], "mid": price}
    rows = list(found.values())
    revised = {**rows[100], "close": rows[100]["close"] + 0.01, "price": rows[100]["price"] + 0.01, "offset": rows[100]["offset"] + 10, "revised": True}
    return [*rows[:120], revised, *rows[120:]]


def _predictions(windows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    chance = random.Random(21)
    predictions, outcomes = [], []
    for row in windows[::40]:
        for horizon in (10, 60):
            as_of = (row["second"] + 1) * 1000
            forecast = {
                "id": f"{row['symbol']}-{row['second']}", "symbol": row["symbol"], "as_of": as_of, "horizon_s": horizon,
                "predicted_return": chance.gauss(0, 1e-4), "p_up": chance.random(), "model": "xgboost", "version": "v1",
            }  # fmt: skip
            predictions.append({**forecast, "price": row["price"], "feature_hash": "f", "offset": row["offset"], "made_at": as_of + 30, "latency_ms": "{}"})
            if len(predictions) % 5:
                realised = chance.choice([0.0, chance.gauss(0, 1e-4)])
                outcomes.append({**forecast, "role": "champion", "realised_return": realised, "price_then": row["price"], "judged_at": as_of + horizon * 1000})
    return predictions, outcomes


def _alerts(windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for number, row in enumerate(windows[200::400]):
        at, rule = (row["second"] + 1) * 1000, ("price_move", "volume_spike")[number % 2]
        alert = {
            "id": f"{row['symbol']}-{rule}-{row['second']}", "symbol": row["symbol"], "rule": rule, "severity": "warning", "opened_at": at, "value": 3.5,
            "baseline": 1.0, "threshold": 3.0, "message": "moved", "window": "{}",
        }  # fmt: skip
        found += [{**alert, "state": "opened", "as_of": at}, {**alert, "state": "closed", "as_of": at + 7_000}]
    return [*found, found[0]]                                               # a message that a crashed worker published again


def _topic(store: Store, area: str, folder: str, time: str, rows: list[dict[str, Any]]) -> None:
    """Objects of an area that is made of a topic: two for each of its folders."""
    log = f"{area}.{T0:x}"
    by_folder: dict[str, list[dict[str, Any]]] = {}
    for offset, row in enumerate(rows):
        moment = datetime.fromtimestamp(row[time] / 1000, UTC)
        place = {"partition": PARTITION, "log": log, "record_offset": offset}
        by_folder.setdefault(folder.format(date=f"{moment:%Y-%m-%d}", hour=f"{moment:%H}"), []).append({**row, **place})
    for of, members in by_folder.items():
        for half in (members[: len(members) // 2], members[len(members) // 2 :]):
            first, last = half[0]["record_offset"], half[-1]["record_offset"]
            footer = encode_json(Range(log, PARTITION, first, last, len(half)))
            store.create(f"processed/{area}/{of}/{log}-{PARTITION:05d}-{first:020d}.parquet", parquet(pa.Table.from_pylist(half, STORED[area]), footer))


def _compact(store: Store, area: str, folder: str) -> None:
    """Compacts a folder, and then writes its small objects again."""
    small = {name: store.read(name) for name in store.list(f"processed/{area}/{folder}/")}
    result = compact_folder(store, area, folder, None)
    assert (result.made, result.replaced, result.deleted, result.faults) == (1, len(small), len(small), []) and len(small) > 1
    for name, data in small.items():
        assert store.create(name, data)
