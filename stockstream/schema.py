"""The topics' contract as one AsyncAPI 3.0 document: JSON Schemas made from the records, Arrow frames described by their columns.

`python -m stockstream.schema` prints it; docs/asyncapi.json is that output, and a test compares both. Limits of a tick that the types do
not express are those of `transforms/cleaning/limits.py`, which `clean` enforces.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow as pa

from stockstream.kafka.admin import TopicSpec, topic_specs
from stockstream.records import (
    SCHEMA_VERSION,
    SHARES,
    TICK_FIELDS,
    TICKS_SCHEMA,
    WINDOWS_SCHEMA,
    Alert,
    DeadAlert,
    Feed,
    Gap,
    Outcome,
    Prediction,
    Punctuation,
    Rejection,
    Repair,
    Reservation,
    SourceReport,
    Tick,
)  # fmt: skip
from stockstream.settings import Settings
from stockstream.sources.base import SymbolInfo
from stockstream.sources.ingestion import Watch
from stockstream.transforms.cleaning.limits import LENGTHS, MAX_TIME, MIN_TIME, PLACEHOLDERS, RANGES
from stockstream.transforms.shares import DECIMALS
from stockstream.transforms.timing import WINDOW_S
from stockstream.transforms.windows.arithmetic import WIDEST
from stockstream.transforms.windows.quality import FLAGS

Json = dict[str, Any]

PREFIX = "stockstream."
ARROW = "application/vnd.apache.arrow.stream"
ARROW_SCHEMA = "application/vnd.stockstream.arrow-columns+json;version=1"
"""The project's media type for a description of a frame's columns: `metadata` and `columns`, each with Arrow's name of its type."""

FRAME_METADATA = {
    "log": "id of the raw log's life; of two, the greater string is the newer log",
    "from": "first raw offset covered: the `through` of the frame before plus one",
    "through": "last raw offset covered",
    "closings": "JSON array of [offset, source, after, second]: at that raw offset the source's seconds s with after < s <= second closed",
    "part": "number of this message, from 0, where one offset's rows are too many for a message",
    "parts": "how many messages those rows come in; 1 otherwise",
    "version": "of the frame's format; 1 where it is missing",
    "clock": "newest Kafka time of an accepted record up to `through`, epoch ms; 0 where it is not known",
}
"""What a frame's Arrow schema carries, all of it UTF-8."""

TICKS_COLUMNS = {field.name: field.meaning for field in TICK_FIELDS if field.carried} | {
    "flags": "sum of: 1 size accrued over more than 2 s; 2 a correction, which changes only volumes and vwap_5m; 4 a new series begins with its second; "
    "8 its feed was away before it",
    "gap_s": "seconds since the symbol's last trade, where they are more than 60 and at most 8 hours; else null",
    "price_before_gap": "price of that last trade",
    "offset": "raw offset of the record that brought it",
    "index": "its place in that record's array, from 0",
}

WINDOWS_COLUMNS = {
    "symbol": "the symbol",
    "source": "the feed that the symbol belongs to",
    "second": "the second, epoch s UTC",
    "open": "first price of the second, in the symbol's currency; null in a second of quotes only",
    "high": "highest price of the second",
    "low": "lowest price of the second",
    "close": "last price of the second",
    "volume": "shares traded in the second",
    "ticks": "ticks with a price in the second",
    "quotes": "ticks without a price in the second",
    "bid": "last bid of the second; null where it has none",
    "ask": "last ask of the second",
    "bid_size": "shares at that bid",
    "ask_size": "shares at that ask",
    "mid": f"(bid + ask) / 2; null unless bid < ask and their spread is at most {WIDEST:.0%} of the last trade",
    "mean_5m": "mean of the last prices of the window's seconds, quiet seconds carrying the price before",
    "vwap_5m": "sum of price x size over sum of size in the window; null without volume",
    "volume_5m": "shares traded in the window",
    "high_5m": "highest price of a tick in the window",
    "low_5m": "lowest price of a tick in the window",
    "return_std_5m": "sample standard deviation of the one-second log returns in the window; null below two returns",
    "ticks_5m": "ticks with a price in the window",
    "seconds_5m": f"seconds of the window since the series began, at most {WINDOW_S}",
    "quality": f"flags joined by a comma, empty when all is well: {' '.join(FLAGS)}; `partial`: seconds_5m is below {WINDOW_S}",
    "revised": "whether late ticks made this row be sent again",
    "partition": "partition of the raw log",
    "offset": "raw offset of the closing that the row was sent at; of one symbol and second the row with the highest counts",
    "price": "mid, else close, else the price carried within the series",
    "price_60s": "price carried 60 s before; null where the series is younger",
    "return_1s": "log return of the carried price over 1 s; null where the series is younger",
    "return_5s": "log return over 5 s",
    "return_10s": "log return over 10 s",
    "return_30s": "log return over 30 s",
    "return_60s": "log return over 60 s",
    "volume_10s": "shares traded in the 10 s up to and including the second",
    "volume_60s": "shares traded in the 60 s up to and including the second",
    "ticks_10s": "ticks with a price in the 10 s up to and including the second",
    "accrued_5m": "part of volume_5m that had accrued over more than 2 s when it became known",
    "gap_s": "seconds from the symbol's last trade to the second's first one, where they are more than 60 and at most 8 hours; else null",
    "price_before_gap": "price of that last trade",
}
"""The window is the WINDOW_S seconds up to and including the second."""


class MarketSummary(msgspec.Struct, kw_only=True):
    """One second of one partition and source. Counts and sums are over rows that are not revised; those of returns over symbols with a return_60s."""

    partition: int
    source: str
    second: int
    offset: int
    symbols: int
    advancers: int
    decliners: int
    unchanged: int
    volume: int | float
    ticks: int
    returns_60s: int
    sum_return_60s: float
    sum_square_return_60s: float


RECORDS = (
    Watch, SymbolInfo, Feed, SourceReport, Reservation, Gap, Repair, Tick, Punctuation, Rejection, MarketSummary, Alert, DeadAlert, Prediction, Outcome,
)  # fmt: skip

_TICK_TEXTS = {
    "symbol": "printable, without blanks around it",
    "source": "names one feed with one clock and one numbering",
    "event_time": "epoch ms UTC",
    "price": "in `currency`; null in a pure quote",
    "size": f"shares traded in this tick, with up to {DECIMALS} decimals; may be missing only where day_volume is given",
} | {field.name: field.meaning for field in TICK_FIELDS if field.kind == "control"}  # fmt: skip
"""Descriptions of a raw tick's fields in the JSON Schema."""


def _limits(name: str) -> Json:
    """Limits and description of a raw tick's field."""
    limits: Json = {}
    if name in LENGTHS:
        least, most = LENGTHS[name]
        limits = ({"minLength": least} if least else {}) | {"maxLength": most}
    elif name == "event_time":
        limits = {"minimum": MIN_TIME, "exclusiveMaximum": MAX_TIME}
    elif name in RANGES:
        low, high = RANGES[name]
        limits = {"minimum": low, "maximum": high}
    if name == "size":
        limits = {"type": "number"} | limits
    return limits | ({"description": _TICK_TEXTS[name]} if name in _TICK_TEXTS else {})


_TICK_RULES: tuple[Json, ...] = (
    {"anyOf": [{"required": ["size"]}, {"required": ["day_volume"], "properties": {"day_volume": {"type": "number"}}}]},
    {"anyOf": [
        {"properties": {"price": {"type": "number"}}},
        {"properties": {"size": {"anyOf": [{"maximum": 0}, {"enum": sorted(PLACEHOLDERS["size"])}]}}},
    ]},
)

_HEADERS: Json = {
    "type": "object",
    "properties": {
        "schema_version": {"type": "string", "const": str(SCHEMA_VERSION)},
        "hops": {"type": "string", "description": "JSON array of epoch ms: arrival of the raw record, then each agent's sending; not content"},
    },
}


def json_schemas() -> dict[str, Json]:
    """The JSON Schema of each record by name, references among them as `#/components/schemas/<name>`."""
    _, components = msgspec.json.schema_components(RECORDS, ref_template="#/components/schemas/{name}")
    schemas: dict[str, Json] = dict(components)
    tick = schemas["Tick"]
    for field in TICK_FIELDS:
        tick["properties"][field.name] = _limited(tick["properties"][field.name], _limits(field.name))
    for name, placeholders in PLACEHOLDERS.items():
        kind = tick["properties"][name]
        if "anyOf" not in kind:
            number = {key: value for key, value in kind.items() if key != "description"}
            kind = tick["properties"][name] = {"anyOf": [number], "description": kind["description"]}
        kind["anyOf"].append({"enum": sorted(placeholders), "description": "placeholders, which count as null"})
    tick["allOf"] = list(_TICK_RULES)
    ref = {"$ref": "#/components/schemas/Tick"}
    schemas["TickFrame"] = {"title": "TickFrame", "description": "Ticks of symbols of one partition.", "type": "array", "items": ref, "minItems": 1}
    schemas["LatestRow"] = {
        "title": "LatestRow",
        "description": "A row of `windows` as JSON.",
        "type": "object",
        "properties": {field.name: _json_type(field) | {"description": WINDOWS_COLUMNS[field.name]} for field in WINDOWS_SCHEMA},
        "required": list(WINDOWS_SCHEMA.names),
    }
    schemas["Outcomes"] = {"title": "Outcomes", "type": "array", "items": {"$ref": "#/components/schemas/Outcome"}, "minItems": 1}
    return schemas


def _limited(kind: Json, limits: Json) -> Json:
    """The limits put where the values are: beside the type, or into that of the alternatives which is not null."""
    outer = {key: value for key, value in limits.items() if key == "description"}
    inner = {key: value for key, value in limits.items() if key != "description"}
    if limits.get("type"):
        return {**inner, **outer}
    if "anyOf" in kind:
        return {**kind, "anyOf": [part if part.get("type") == "null" else {**part, **inner} for part in kind["anyOf"]], **outer}
    return {**kind, **inner, **outer}


def _json_type(field: pa.Field) -> Json:
    kind = field.type
    if field.name in SHARES:
        return {"type": "number"}
    if field.name == "gap_s":
        return {"type": ["integer", "null"]}
    if pa.types.is_floating(kind):
        return {"type": ["number", "null"]}
    return {"type": "integer" if pa.types.is_integer(kind) else "boolean" if pa.types.is_boolean(kind) else "string"}


def _columns(schema: pa.Schema, meanings: Mapping[str, str]) -> Json:
    columns = [{"name": field.name, "type": str(field.type), "description": meanings[field.name]} for field in schema]
    return {"metadata": FRAME_METADATA, "columns": columns}


def _message(title: str, summary: str, payload: Json, *, key: str, content_type: str = "application/json") -> Json:
    return {
        "title": title, "summary": summary, "contentType": content_type, "headers": _HEADERS, "payload": payload,
        "bindings": {"kafka": {"key": {"type": "string", "description": "the symbol"} if key == "symbol" else {"type": "null", "description": key},
                               "bindingVersion": "0.5.0"}},
    }  # fmt: skip


def _of(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _frame(schema: pa.Schema, meanings: Mapping[str, str]) -> Json:
    return {"schemaFormat": ARROW_SCHEMA, "schema": _columns(schema, meanings)}


def messages() -> dict[str, tuple[str, dict[str, Json]]]:
    """By topic, in pipeline order: what it is for, and its messages by name."""
    none = "none, by partition"
    return {
        "watchlist": ("Which source brings a symbol; compacted.", {"watch": _message("Watch", "the source of a symbol", _of("Watch"), key="symbol")}),
        "symbols": ("Metadata of a symbol; compacted.", {"symbol": _message("Symbol", "what is known of a symbol", _of("SymbolInfo"), key="symbol")}),
        "feeds": ("The state of each watched symbol; compacted.", {"feed": _message("Feed", "one symbol", _of("Feed"), key="symbol")}),
        "sources": ("Each source on each worker; one partition, compacted.", {
            "report": _message("Source report", "one source on one worker", _of("SourceReport"), key="source@worker"),
        }),
        "requests": ("Reservations of the sources' budgets; one partition.", {
            "reservation": _message("Reservation", "one request", _of("Reservation"), key="none"),
        }),
        "gaps": ("Times in which a source brought nothing of a symbol.", {"gap": _message("Gap", "one gap of one symbol", _of("Gap"), key="symbol")}),
        "repairs": ("One-minute bars that were fetched for gaps.", {"repair": _message("Repair", "one bar", _of("Repair"), key="symbol")}),
        "ticks.raw": ("Ticks as any producer may write them, to the symbol's home partition: murmur2 of the symbol, modulo the number of partitions.", {
            "tick": _message("Tick", "one tick", _of("Tick"), key="symbol"),
            "tickFrame": _message("Frame of ticks", "an array of ticks of one partition's symbols", _of("TickFrame"), key=none),
            "punctuation": _message("Punctuation", "closes a source's seconds in one partition", _of("Punctuation"), key=none),
        }),
        "ticks.rejected": ("What cannot be used, with its reason and place.", {
            "rejection": _message("Rejection", "one record, or one tick of a frame", _of("Rejection"), key="symbol"),
        }),
        "ticks.clean": ("Accepted ticks in log order.", {
            "ticks": _message("Accepted ticks", "a frame: an Arrow IPC stream of one batch", _frame(TICKS_SCHEMA, TICKS_COLUMNS), key=none, content_type=ARROW),
        }),
        "windows": ("Rows of closed seconds; a closing without rows is sent too.", {
            "rows": _message("Rows", "a frame: an Arrow IPC stream of one batch", _frame(WINDOWS_SCHEMA, WINDOWS_COLUMNS), key=none, content_type=ARROW),
        }),
        "latest": ("The last row of a symbol, at most once a minute; compacted.", {"row": _message("Row", "one row", _of("LatestRow"), key="symbol")}),
        "market": ("Summaries of each partition's second; one partition.", {"summary": _message("Summary", "one second", _of("MarketSummary"), key="none")}),
        "alerts": ("Changes of alerts.", {"alert": _message("Alert", "one change of one alert", _of("Alert"), key="symbol")}),
        "alerts.dead": ("Changes of alerts that a route did not deliver; compacted.", {
            "dead": _message("Dead alert", "one change of one alert, and one route", _of("DeadAlert"), key="route/id/state/as_of"),
        }),
        "predictions": ("Predictions of the champion model.", {"prediction": _message("Prediction", "one symbol and second", _of("Prediction"), key="symbol")}),
        "outcomes": ("What prices did by the predictions' horizons.", {"outcomes": _message("Outcomes", "an array", _of("Outcomes"), key=none)}),
    }  # fmt: skip


def _channel(spec: TopicSpec, description: str, of: dict[str, Json]) -> Json:
    configuration: Json = {}
    if "cleanup.policy" in spec.config:
        configuration["cleanup.policy"] = [spec.config["cleanup.policy"]]
    if "retention.ms" in spec.config:
        configuration["retention.ms"] = int(spec.config["retention.ms"])
    return {
        "address": spec.name, "description": description, "messages": of,
        "bindings": {"kafka": {"topic": spec.name, "partitions": spec.partitions, "topicConfiguration": configuration, "bindingVersion": "0.5.0"}},
    }  # fmt: skip


def document() -> Json:
    """The whole AsyncAPI document, with default settings: prefix, partitions and retention are settings of the installation."""
    specs = {spec.name: spec for spec in topic_specs(Settings.model_construct())}
    channels, operations = {}, {}
    for name, (description, of) in messages().items():
        channel = "".join(part.capitalize() if i else part for i, part in enumerate(name.split(".")))
        channels[channel] = _channel(specs[PREFIX + name], description, of)
        taken = name in ("watchlist", "ticks.raw")
        operations[("read" if taken else "write") + channel[0].upper() + channel[1:]] = {
            "action": "receive" if taken else "send", "channel": {"$ref": f"#/channels/{channel}"},
        }  # fmt: skip
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "stockstream",
            "version": f"{SCHEMA_VERSION}.0.0",
            "description": "Topics of stockstream. Operations are the app's: it receives what others may write, and sends what others may read.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": json_schemas()},
    }


def main() -> None:
    """Prints the document."""
    sys.stdout.write(json.dumps(document(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
