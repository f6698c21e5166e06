from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from stockstream import packages
from stockstream.errors import SettingsError, StockstreamError
from stockstream.packages import OURS, require_own_packages


def _packages(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    return folder


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_ours_are_found() -> None:
    require_own_packages()


def test_a_package_of_the_same_name_elsewhere_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    ours = _packages(tmp_path / "ours", *OURS)
    other = _packages(tmp_path / "other", "tables")
    monkeypatch.syspath_prepend(ours)
    require_own_packages(ours)
    monkeypatch.syspath_prepend(other)
    with pytest.raises(StockstreamError, match=r"'tables'.* is .*other/tables, not stockstream's: .*environment of its own"):
        require_own_packages(ours)


def test_a_module_in_the_place_of_a_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    ours = _packages(tmp_path, "tables", "models")
    (tmp_path / "agents.py").touch()
    monkeypatch.syspath_prepend(ours)
    with pytest.raises(StockstreamError, match="'agents'"):
        require_own_packages(ours)


def test_two_distributions_in_one_folder_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    ours = _packages(tmp_path / "site-packages", *OURS)
    monkeypatch.syspath_prepend(ours)

    def distribution(name: str) -> str:
        if name == "openai-agents":
            return name
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages, "distribution", distribution)
    with pytest.raises(StockstreamError, match="openai-agents and stockstream both install a package 'agents'"):
        require_own_packages(ours)


@pytest.mark.parametrize(
    ("name", "found", "line"),
    [
        ("aiokafka", "0.13.0", "aiokafka 0.13.0 was not tried with stockstream"),
        ("aiokafka", "0.15.0", r"pip install 'aiokafka>=0\.14,<0\.15'"),
        ("faust-streaming", "0.15.2", "faust-streaming 0.15.2 was not tried"),
        ("faust-streaming", "0.16", "faust-streaming 0.16 was not tried"),
        ("aiokafka", None, "aiokafka is not installed"),
    ],
)
def test_a_version_that_was_not_tried_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, found: str | None, line: str) -> None:
    packages.require_tried_versions()
    real = importlib.metadata.version

    def version(asked: str) -> str:
        if asked != name:
            return real(asked)
        if found is None:
            raise PackageNotFoundError(asked)
        return found

    monkeypatch.setattr(packages, "version", version)
    with pytest.raises(SettingsError, match=line) as refused:
        packages.require_tried_versions()
    assert "\n" not in str(refused.value)


def test_pyproject_asks_for_the_same_versions() -> None:
    asked = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, (first, end) in packages.TRIED.items():
        assert f"{name}>={'.'.join(map(str, first))},<{'.'.join(map(str, end))}" in asked
