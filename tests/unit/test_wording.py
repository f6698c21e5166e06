"""Counts in messages."""

from __future__ import annotations

import re
from pathlib import Path

from stockstream.wording import counted

CODE = Path(__file__).parents[2] / "stockstream"
NOUNS = "symbol|object|partition|row|tick|record|chain|fault|prediction|minute|alert"
PLURAL_OF_ANY = re.compile(r"\{(?!counted)[^{}\"]*\} (?:more |raw |held-out )?(?:" + NOUNS + r")s\b(?!/)")
ALWAYS_MANY = ("0 to 100,000 can be simulated", "trained on {span['rows']")


def test_one_is_singular() -> None:
    assert [counted(count, "raw record") for count in (0, 1, 2, 1_200)] == ["0 raw records", "1 raw record", "2 raw records", "1,200 raw records"]


def test_no_message_of_a_command_or_view_writes_a_plural_whatever_the_count() -> None:
    files = [CODE / "status.py", CODE / "kafka" / "admin.py", *sorted((CODE / "commands").glob("*.py")), *sorted((CODE / "web").glob("*.py"))]
    found = [f"{file.name}: {line.strip()}" for file in files for line in file.read_text().splitlines() if PLURAL_OF_ANY.search(line)]
    assert files and [line for line in found if not any(known in line for known in ALWAYS_MANY)] == []
