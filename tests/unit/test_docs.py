"""Docs that list what the code has: options, defaults, reasons."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from pydantic import SecretStr

from stockstream.cli import COMMANDS, group
from stockstream.settings import Settings
from stockstream.sources.simulated import default_symbols
from stockstream.transforms import cleaning

ROOT = Path(__file__).parents[2]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def section(name: str) -> str:
    """The part of commands.md about one command."""
    text = (ROOT / "docs" / "commands.md").read_text()
    return text.partition(f"## `stockstream {name}`")[2].partition("\n## ")[0]


def options_of(command: click.Command) -> set[str]:
    found = {name for option in command.params if isinstance(option, click.Option) for name in (*option.opts, *option.secondary_opts)}
    return found.union(*(options_of(below) for below in command.commands.values())) if isinstance(command, click.Group) else found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_no_other(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    cells = [line.split(" | ")[0] for line in section(name).splitlines() if line.startswith("| `-")]
    documented = {option for cell in cells for option in re.findall(r"`(--?[a-z][a-z-]*)", cell)}
    assert documented == options_of(command)


def test_every_default_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    for name, setting in Settings.model_fields.items():
        (documented,) = re.findall(rf"^\| `STOCKSTREAM_{name.upper()}` \| (.*?) \|", text, re.MULTILINE)
        default = setting.default
        if isinstance(default, SecretStr) or default in (None, "", ()):
            assert documented.strip() == "", name
            continue
        default = ",".join(default) if isinstance(default, tuple) else default
        documented = documented.strip().strip("`").removeprefix("./" if isinstance(default, Path) else "")
        assert documented == (f"{default:g}" if isinstance(default, float) else str(default)), name


def test_symbols_of_the_http_examples_are_in_the_demos_market() -> None:
    named = re.findall(r"/api/symbols/([A-Z0-9]+)", (ROOT / "docs" / "http.md").read_text() + (ROOT / "README.md").read_text())
    assert named and set(named) <= set(default_symbols(1000))


def test_every_reason_for_a_rejection_is_documented() -> None:
    text = (ROOT / "docs" / "topics.md").read_text()
    source = "".join(path.read_text() for path in sorted(Path(cleaning.__path__[0]).glob("*.py")))
    reasons = set(re.findall(r'"([a-z_]+)", (?:text|detail|\(?\s*f?"[^"]* )', source))
    assert {"late", "duplicate", "future", "other_source", "wrong_partition", "empty_message", "invalid_json"} <= reasons
    assert {"too_many_sources", "too_many_symbols", "internal_error"} <= reasons
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    files = [ROOT / name for name in re.findall(r"`((?:stockstream|tests|agents|tables|models|deploy|benchmarks)/[\w/.]+\.\w+)`", text)]
    assert [str(path) for path in links + files if not path.exists()] == []


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_are_not_broken(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    assert [link for link in links if link[1] not in anchors(page.parent / link[0] if link[0] else page)] == []


def prose(text: str) -> list[str]:
    """The lines of a page outside tables, headings and code (fenced, or indented after a blank line)."""
    lines: list[str] = []
    fenced, indented, before = False, False, ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        indented = (line.startswith("    ") and (indented or not before.strip())) or (indented and not line.strip())
        if not fenced and not indented and not line.startswith(("|", "#")):
            lines.append(line)
        before = line
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_wraps_at_100_characters(page: Path) -> None:
    assert [line for line in prose(page.read_text()) if len(line) > 100] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "glossary.md"], ids=lambda page: page.name)
def test_programs_neither_tell_nor_say(page: Path) -> None:
    """The glossary's last table has what to write instead."""
    found = re.findall(r"\b(?:told|tells?|said|says?)\b.*", "\n".join(prose(page.read_text())))
    assert found == []
