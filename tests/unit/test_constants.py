"""A constant stands once: what several modules need is assigned in one of them, and what cannot import it agrees with it."""

from __future__ import annotations

import ast
import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from models import features, training
from stockstream.records import TEXTS, TICK_FIELDS, TICKS_SCHEMA, WINDOWS_SCHEMA, Tick
from stockstream.schema import json_schemas
from stockstream.settings import Settings
from stockstream.transforms import batch, frame_checks, timing, versioned
from stockstream.transforms.cleaning import columns, limits
from stockstream.transforms.cleaning.rejections import range_fault

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("agents", "benchmarks", "models", "stockstream", "tables")
HOMES = {timing: "stockstream/transforms/timing.py", limits: "stockstream/transforms/cleaning/limits.py", versioned: "stockstream/transforms/versioned.py"}
APART = {
    "models/features.py": {"WINDOW_S"},              # models import nothing of stockstream
    "benchmarks/peers/rolling.py": {"WINDOW_S"},     # runs in environments without stockstream
}
"""Where one stands again because it cannot be imported."""


@cache
def assigned(path: Path) -> tuple[str, ...]:
    """Names in capitals that a module assigns."""
    names: list[str] = []
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            names += (name.id for name in ast.walk(target) if isinstance(name, ast.Name) and name.id.isupper())
    return tuple(names)


@pytest.mark.parametrize("home", list(HOMES), ids=lambda module: module.__name__.rpartition(".")[2])
def test_it_is_assigned_in_one_module(home: ModuleType) -> None:
    shared = set(assigned(ROOT / HOMES[home]))
    again = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place != HOMES[home]:
                again += [(place, name) for name in assigned(path) if name in shared and name not in APART.get(place, ())]
    assert again == []


def test_what_stands_apart_agrees() -> None:
    assert features.WINDOW_S == timing.WINDOW_S
    assert training.SERIES_GAP_S == timing.WINDOW_S
    assert f"\nWINDOW_S = {timing.WINDOW_S}\n" in (ROOT / "benchmarks/peers/rolling.py").read_text()


def test_names_of_columns_agree() -> None:
    returns = tuple(name for name in WINDOWS_SCHEMA.names if name.startswith("return_") and name != "return_std_5m")
    assert returns == tuple(f"return_{lag}s" for lag in timing.LAGS_S)
    assert tuple(name for name in features.COLUMNS if name in returns) == returns
    minutes = {name.rpartition("_")[2] for name in WINDOWS_SCHEMA.names if name.endswith("m")}
    assert minutes == {f"{timing.WINDOW_S // 60}m"}


def test_what_pages_say_agrees() -> None:
    assert f"shares traded in the last {timing.WINDOW_S} s" in (ROOT / "stockstream/web/static/index.html").read_text()
    topics = " ".join((ROOT / "docs/topics.md").read_text().split())
    assert re.findall(r"1 to (\d+) characters", topics) == [str(limits.MAX_SYMBOL)]
    assert re.findall(r"`([^`]+)`[^`]* at most (\d+) characters", topics) == [(TEXTS[-1], str(limits.MAX_TEXT))]
    assert [name for name in TEXTS if f"`{name}`" not in topics] == []
    defaults = dict(re.findall(r"`STOCKSTREAM_([A-Z_]+)` \((\d+)\)", topics))
    assert (defaults["LATENESS_MS"], defaults["REVISE_S"]) == (str(timing.LATENESS_MS), str(timing.REVISE_S))
    assert set(re.findall(r"more than (\d+) s ahead", topics)) == {str(timing.FUTURE_MS // 1000)}
    assert re.findall(r"more than (\d+) s after", topics) == [str(timing.WINDOW_S)]


def test_defaults_of_settings_are_these() -> None:
    assert (Settings.model_fields["lateness_ms"].default, Settings.model_fields["revise_s"].default) == (timing.LATENESS, timing.REVISE_S)
    assert timing.Lateness.parse(timing.LATENESS).default_ms == timing.LATENESS_MS


def test_the_table_of_fields_is_the_tick() -> None:
    assert {field.name for field in TICK_FIELDS} == set(Tick.__struct_fields__)
    assert len(TICK_FIELDS) == len(Tick.__struct_fields__)
    optional = {field.name for field in TICK_FIELDS if field.kind in ("quote", "text")} | {"gap_from", "interval_s"}
    bare = Tick(symbol="A", event_time=1, price=1.0)
    assert not bare.has_extras()
    assert {name for name in Tick.__struct_fields__ if msgspec.structs.replace(bare, **{name: "x"}).has_extras()} == optional
    assert set(limits.LENGTHS) | set(limits.RANGES) == {field.name for field in TICK_FIELDS} - {"snapshot", "received_at"}


@pytest.mark.parametrize("name", sorted(limits.LENGTHS))
def test_one_limit_of_a_text_is_everywhere(name: str) -> None:
    """The published schema, the rejection and the decoder of columns have the same length."""
    least, most = limits.LENGTHS[name]
    schema = json_schemas()["Tick"]["properties"][name]
    texts = schema if "maxLength" in schema else next(part for part in schema["anyOf"] if "maxLength" in part)
    assert (texts.get("minLength", 0), texts["maxLength"]) == (least, most)
    fits, beyond = ({"symbol": "A", "event_time": limits.MIN_TIME, "price": 1.0, "size": 1} | {name: "x" * length} for length in (most, most + 1))
    for tick, good in ((fits, True), (beyond, False)):
        fault = range_fault(msgspec.convert(tick, Tick))
        assert (fault is None) == good
        assert fault is None or str(most) in fault[1]
        record = batch.RawRecord(0, 1, msgspec.json.encode(tick))
        with nullcontext() if good else pytest.raises(columns.OddRecord):
            columns.read([record])


@pytest.mark.parametrize("name", sorted(limits.RANGES))
def test_one_range_of_a_number_is_everywhere(name: str) -> None:
    low, high = limits.RANGES[name]
    schema = json_schemas()["Tick"]["properties"][name]
    of = schema if "anyOf" not in schema else next(part for part in schema["anyOf"] if part["type"] != "null")
    least = of["exclusiveMinimum"] + 1 if "exclusiveMinimum" in of else of["minimum"]
    most = of["exclusiveMaximum"] - 1 if "exclusiveMaximum" in of else of["maximum"]
    assert (least, most) == (low, high)
    bounds = {field: range_ for field, *_, range_ in frame_checks.layout_of(TICKS_SCHEMA).columns}
    if name not in ("event_time", "size"):                               # earlier releases had earlier times; the size of a correction is negative
        assert bounds.get(name, (low, high)) == (low, high)
    step = 1 if isinstance(high, int) else high / 2
    for value, good in ((low, True), (high, True), (high + step, False), (low - step, False)):
        tick = {"symbol": "A", "event_time": limits.MIN_TIME, "price": 1.0, "size": 1} | {name: value}
        if not -(1 << 63) <= value < 1 << 63 or value in limits.PLACEHOLDERS.get(name, ()):
            continue                                                     # beyond the decoder's integers, or no value
        assert (range_fault(msgspec.convert(tick, Tick)) is None) == good, value
