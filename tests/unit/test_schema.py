"""docs/asyncapi.json is what the code says, and what the code says holds for real messages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import features
from stockstream import schema
from stockstream.kafka.admin import topic_specs
from stockstream.records import SCHEMA_VERSION, TICKS_SCHEMA, WINDOWS_SCHEMA, Punctuation
from stockstream.settings import Settings
from stockstream.sources.ingestion import Watch
from stockstream.sources.simulated import SimulatedMarket
from stockstream.transforms import batch, frames
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.scoring.scorer import encode_outcomes, encode_predictions
from stockstream.transport.messages import VERSION_HEADER

DOCS = Path(__file__).parents[2] / "docs"
SYMBOLS = ["AAA", "BBB", "CCC"]
BEGIN = 1_700_000_000
SECONDS = 260
BY_THE_LOG = {"wrong_partition", "future", "duplicate", "other_source", "late"}
"""What hangs on the state; every other reason is one of shape and range, which a schema can say."""

encode = msgspec.json.Encoder().encode


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "asyncapi.json").read_text())
    return found


@cache
def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document()["components"]})


def holds(name: str, values: Sequence[bytes]) -> None:
    """Valid, and without a field that the schema does not name."""
    assert values, name
    known = document()["components"]["schemas"][name].get("properties")
    for value in values:
        message = json.loads(value)
        validator(name).validate(message)
        assert known is None or set(message) <= set(known)


@dataclass(frozen=True)
class Fake:
    """A model that always says the same."""

    name: str = "fake"
    version: str = "1"
    horizons_s: tuple[int, ...] = (10, 60)
    feature_hash: str = field(default_factory=features.feature_hash)

    def predict(self, matrix: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.full((len(matrix), 2), 1e-4), np.full((len(matrix), 2), 0.51)


@cache
def raw_log() -> list[batch.RawRecord]:
    """Minutes of the simulated market with a burst of volume, one bad record and a punctuation."""
    market = SimulatedMarket(1, SYMBOLS)
    records: list[batch.RawRecord] = []
    for second in range(BEGIN, BEGIN + SECONDS):
        for _, event_time, value in market.ticks(second):
            if second == BEGIN + 150:
                value = encode(msgspec.json.decode(value) | {"size": 10**7})
            records.append(batch.RawRecord(len(records), event_time, value))
    records.append(batch.RawRecord(len(records), (BEGIN + SECONDS) * 1000, b"\xff{"))
    records.append(batch.RawRecord(len(records), (BEGIN + SECONDS) * 1000, encode(Punctuation(punctuate=BEGIN + SECONDS, source="simulated.1"))))
    return records


@cache
def results() -> batch.Results:
    return batch.run(raw_log(), partition=0, partitions=1, model=Fake(), chunk=100)


def test_the_document_is_the_codes() -> None:
    assert document() == json.loads(json.dumps(schema.document())), "run `make schema`"


def test_every_topic_is_in_it() -> None:
    addresses = {channel["address"] for channel in document()["channels"].values()}
    assert addresses == {spec.name for spec in topic_specs(Settings.model_construct()) if not spec.name.endswith("-changelog")}


def test_its_schemas_are_schemas() -> None:
    for found in document()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(found)


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(document())
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        at: Any = document()
        for part in reference.split("/"):
            at = at[part]


def test_the_header_is_the_one_sent() -> None:
    name, value = VERSION_HEADER
    headers = document()["channels"]["windows"]["messages"]["rows"]["headers"]
    assert headers["properties"][name]["const"] == value.decode() == str(SCHEMA_VERSION)


@pytest.mark.parametrize(("channel", "message", "columns"), [("ticksClean", "ticks", TICKS_SCHEMA), ("windows", "rows", WINDOWS_SCHEMA)])
def test_frames_are_as_described(channel: str, message: str, columns: Any) -> None:
    reported = document()["channels"][channel]["messages"][message]["payload"]["schema"]
    assert [(column["name"], column["type"]) for column in reported["columns"]] == [(column.name, str(column.type)) for column in columns]
    sent = results().windows[-1] if channel == "windows" else results().clean[-1]
    metadata = pa.ipc.open_stream(frames.encode(sent)).schema.metadata
    assert {name.decode() for name in metadata} == set(reported["metadata"])
    assert frames.decode(frames.encode(sent), columns).rows.schema.equals(columns)


def test_every_column_is_documented() -> None:
    text = (DOCS / "topics.md").read_text()
    assert [name for name in (*TICKS_SCHEMA.names, *WINDOWS_SCHEMA.names) if f"`{name}`" not in text] == []


def test_ticks_as_sources_write_them() -> None:
    holds("Tick", [value for _, _, value in SimulatedMarket(1, SYMBOLS).ticks(BEGIN)])
    holds("TickFrame", [b"[" + b",".join(value for _, _, value in SimulatedMarket(1, SYMBOLS).ticks(BEGIN)) + b"]"])
    holds("Punctuation", [raw_log()[-1].value or b""])
    holds("SymbolInfo", [encode(info) for info in SimulatedMarket(1, SYMBOLS).describe(BEGIN)])
    holds("Watch", [encode(Watch(symbol="AAA", source="simulated"))])


def test_what_the_line_says() -> None:
    lines = results()
    holds("Rejection", [encode(rejection) for rejection in lines.rejections])
    assert {alert.state for alert in lines.alerts} == {"opened", "closed"}
    holds("Alert", [encode(alert) for alert in lines.alerts])
    holds("LatestRow", [encode(row) for row in lines.rows().to_pylist()[:50]])
    holds("Prediction", [value for scored in lines.scored for value in encode_predictions(scored, 1, {"total": 1})])
    holds("Outcomes", [value for scored in lines.scored for value in encode_outcomes(scored, 1)])
    detector = Detector(0)
    found = [detector.take_frame(frame) for frame in lines.windows]
    holds("MarketSummary", [encode(summary) for detected in found if detected is not None for summary in detected.markets])


@pytest.mark.parametrize("name", ["Watch", "SymbolInfo", "Punctuation", "Rejection", "Alert", "Prediction", "MarketSummary", "LatestRow"])
def test_a_missing_field_is_seen(name: str) -> None:
    assert not validator(name).is_valid({})


_NUMBERS = st.sampled_from([
    None, -1, -2, 2**31 - 1, 1.7976931348623157e308, -0.5, 0, 1e-12, 0.01, 1, 100, 100.25, 10**9, 10**10, 10**12, 10**16, 10**30, "7", True,
])  # fmt: skip
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "source": st.sampled_from([None, "", "feed", "x" * 128, "x" * 129, 5]),
    "size": _NUMBERS, "bid": _NUMBERS, "ask": _NUMBERS, "bid_size": _NUMBERS, "ask_size": _NUMBERS, "day_volume": _NUMBERS, "seq": _NUMBERS,
    "epoch": _NUMBERS,
    "exchange": st.sampled_from([None, "X", 1]), "snapshot": st.sampled_from([True, False, None, 1]), "received_at": st.sampled_from([None, 1, 1.5, "1"]),
    "unknown": _NUMBERS, "interval_s": _NUMBERS,
    "gap_from": st.sampled_from([None, BEGIN, BEGIN * 1000, 0, 1 << 42, (1 << 42) - 1, 1.5, "1"]),
}  # fmt: skip
_VALUES |= {
    "symbol": st.sampled_from(["BBB", "", "A" * 32, "A" * 33, None, 3]),
    "event_time": st.sampled_from([0, -1, 1 << 42, (1 << 42) - 1, 1.5, "1", None]),
    "price": _NUMBERS,
}
_GOOD = {"symbol": "AAA", "event_time": BEGIN * 1000, "price": 1.0, "size": 1}
_CHANGES = st.lists(st.one_of([st.tuples(st.just(name), values) for name, values in _VALUES.items()]), max_size=3)


@given(_CHANGES, st.sets(st.sampled_from(sorted(_GOOD)), max_size=1))
@settings(max_examples=400, deadline=None)
def test_the_schema_of_a_tick_says_what_clean_says(changes: list[tuple[str, Any]], left_out: set[str]) -> None:
    tick = {name: value for name, value in (_GOOD | dict(changes)).items() if name not in left_out}
    cleaner = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="a")
    rejections = cleaner.chunk([batch.RawRecord(0, 1 << 43, encode(tick))])
    faults = [rejection for rejection in rejections if rejection.reason not in BY_THE_LOG]
    assert validator("Tick").is_valid(tick) == (not faults), (tick, faults)
