"""Counts and figures in messages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stockstream.wording import clock_time, counted, figure, utc_time

CODE = Path(__file__).parents[2] / "stockstream"
FORMAT = CODE / "web" / "static" / "format.js"
NODE = shutil.which("node")
NOUNS = "symbol|object|partition|row|tick|record|chain|fault|prediction|minute|alert"
PLURAL_OF_ANY = re.compile(r"\{(?!counted)[^{}\"]*\} (?:more |raw |held-out )?(?:" + NOUNS + r")s\b(?!/)")
ALWAYS_MANY = ("0 to 100,000 can be simulated", "trained on {span['rows']", "all {summary.ticks:,} ticks were rejected")


def test_one_is_singular() -> None:
    assert [counted(count, "raw record") for count in (0, 1, 2, 1_200)] == ["0 raw records", "1 raw record", "2 raw records", "1,200 raw records"]


def test_times_are_utc() -> None:
    assert (utc_time(1_796_049_000_999), clock_time(1_796_049_000_999)) == ("2026-11-30 14:30:00 UTC", "14:30 UTC")


def test_no_message_of_a_command_or_view_writes_a_plural_whatever_the_count() -> None:
    files = [CODE / "status.py", CODE / "kafka" / "admin.py", *sorted((CODE / "commands").glob("*.py")), *sorted((CODE / "web").glob("*.py"))]
    found = [f"{file.name}: {line.strip()}" for file in files for line in file.read_text().splitlines() if PLURAL_OF_ANY.search(line)]
    assert files and [line for line in found if not any(known in line for known in ALWAYS_MANY)] == []


FIGURES = [
    (189.42, 2, 6, "189.42"), (750_000.5, 2, 6, "750,000.50"), (98.5, 2, 6, "98.50"), (0.000301, 2, 6, "0.000301"), (0.000318, 2, 6, "0.000318"),
    (0.1 + 0.2, 2, 6, "0.30"), (1.08345, 2, 6, "1.08345"), (24.115000000000002, 2, 6, "24.115"), (1e-10, 2, 6, "0.0000000001"), (0.0, 2, 6, "0.00"),
    (1e11, 2, 6, "100,000,000,000.00"), (-0.00125, 2, 6, "-0.00125"), (0.99999999, 2, 6, "1.00"),
    (0.0387, 0, 6, "0.0387"), (1200.0, 0, 6, "1,200"), (1200.5, 0, 6, "1,200.5"), (6e9, 0, 6, "6,000,000,000"), (0.0, 0, 6, "0"),
    (100.0, 1, 4, "100.0"), (100 / 3, 1, 4, "33.33"), (0.012, 1, 4, "0.012"), (12_345.678, 1, 4, "12,345.7"),
]  # fmt: skip
PAGE = {
    ("price", "0.000318"): "0.000318", ("price", "189.42"): "189.42", ("price", "750000.5"): "750,000.50", ("price", "null"): "–",
    ("size", "0.0387"): "0.0387", ("size", "1200"): "1,200", ("size", "12345"): "12.3K", ("size", "null"): "–",
}  # fmt: skip


@pytest.mark.parametrize(("value", "decimals", "digits", "text"), FIGURES)
def test_a_figure_keeps_the_digits_that_matter(value: float, decimals: int, digits: int, text: str) -> None:
    assert figure(value, decimals, digits) == text


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_page_prints_the_same_figures() -> None:
    calls = ", ".join(f"figure({value!r}, {decimals}, {digits})" for value, decimals, digits, _ in FIGURES)
    shown = ", ".join(f"{kind}({value})" for kind, value in PAGE)
    script = f"{FORMAT.read_text()}\nconsole.log(JSON.stringify([[{calls}], [{shown}]]))"
    found = subprocess.run([str(NODE), "--input-type=module", "--eval", script], check=True, capture_output=True, text=True).stdout
    assert json.loads(found) == [[text for *_, text in FIGURES], list(PAGE.values())]
