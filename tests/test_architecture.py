"""What holds the whole together: who imports whom, and that everything a user can set, call or read is documented."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from stockstream.cli import COMMANDS
from stockstream.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
REGISTRIES = ("pypi" + ".org", "pythonhosted" + ".org", "repo.maven" + ".apache", "repo1.maven" + ".org", "registry." + "npmjs", "deb.debian" + ".org")
"""Which registry packages come from is the machine's business, so that mirrors work. Written in two parts, so that this file passes."""

SETTINGS = [f"STOCKSTREAM_{name.upper()}" for name in Settings.model_fields]


def tracked_files() -> Iterator[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return (ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


def documentation(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_imports_point_one_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename="setup.cfg", no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_every_setting_is_documented() -> None:
    documented = set(re.findall(r"STOCKSTREAM_[A-Z0-9_]+", documentation("settings.md")))
    assert [name for name in SETTINGS if name not in documented] == []


def test_no_setting_is_documented_that_is_not_there() -> None:
    documented = re.findall(r"^\|\s*`(STOCKSTREAM_[A-Z0-9_]+)`", documentation("settings.md"), re.MULTILINE)
    assert set(documented) <= set(SETTINGS)


def test_every_command_is_documented() -> None:
    text = documentation("commands.md")
    assert [name for name in COMMANDS if f"stockstream {name}" not in text] == []


def test_every_topic_is_documented() -> None:
    from stockstream.kafka.admin import topic_specs

    text = documentation("topics.md")
    names = [spec.name.removeprefix("stockstream.") for spec in topic_specs(Settings())]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_command_has_its_module() -> None:
    modules = {path.stem for path in (ROOT / "stockstream" / "commands").glob("*.py")} - {"__init__"}
    assert modules == set(COMMANDS)


def test_every_make_target_has_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    helped = re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)
    assert sorted(helped) == sorted(phony.split())


def test_the_lock_file_holds_names_and_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.+]*", line), line


def test_no_file_names_a_registry() -> None:
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        found += [f"{path.relative_to(ROOT)}: {registry}" for registry in REGISTRIES if registry.encode() in data]
    assert not found
