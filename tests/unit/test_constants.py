"""A constant stands once: what several modules need is assigned in one of them, and what cannot import it agrees with it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from models import features, training
from stockstream.records import WINDOWS_SCHEMA
from stockstream.settings import Settings
from stockstream.transforms import timing, versioned
from stockstream.transforms.cleaning import limits

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("agents", "benchmarks", "models", "stockstream", "tables")
HOMES = {timing: "stockstream/transforms/timing.py", limits: "stockstream/transforms/cleaning/limits.py", versioned: "stockstream/transforms/versioned.py"}
APART = {
    "models/features.py": {"WINDOW_S"},              # models import nothing of stockstream
    "benchmarks/peers/rolling.py": {"WINDOW_S"},     # runs in environments without stockstream
}
"""Where one stands again because it cannot be imported."""


def assigned(path: Path) -> Iterator[str]:
    """Names in capitals that a module assigns; of compiled code what it gives a number."""
    text = path.read_text()
    if path.suffix == ".pyx":
        yield from re.findall(r"\b([A-Z][A-Z0-9_]+) = -?\d", text)
        return
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name) and name.id.isupper())


@pytest.mark.parametrize("home", list(HOMES), ids=lambda module: module.__name__.rpartition(".")[2])
def test_it_is_assigned_in_one_module(home: ModuleType) -> None:
    shared = set(assigned(ROOT / HOMES[home]))
    again = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py*")):
            place = path.relative_to(ROOT).as_posix()
            if path.suffix in (".py", ".pyx") and place != HOMES[home]:
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
    assert f"`symbol` (1 to {limits.MAX_SYMBOL} characters)" in topics
    assert f"have at most {limits.MAX_TEXT} characters" in topics
    assert f"by `STOCKSTREAM_LATENESS_MS` ({timing.LATENESS_MS})" in topics
    assert f"`STOCKSTREAM_REVISE_S` ({timing.REVISE_S}) seconds back" in topics
    assert f"more than {timing.FUTURE_MS // 1000} s ahead of its record's Kafka time" in topics
    assert f"more than {timing.WINDOW_S} s after the first one's newest second" in topics


def test_defaults_of_settings_are_these() -> None:
    assert (Settings.model_fields["lateness_ms"].default, Settings.model_fields["revise_s"].default) == (timing.LATENESS_MS, timing.REVISE_S)
