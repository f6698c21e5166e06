from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from stockstream import packages
from stockstream.errors import StockstreamError
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


def test_a_package_of_the_same_name_elsewhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    ours = _packages(tmp_path / "ours", *OURS)
    other = _packages(tmp_path / "other", "tables")
    monkeypatch.syspath_prepend(ours)
    require_own_packages(ours)
    monkeypatch.syspath_prepend(other)
    with pytest.raises(StockstreamError, match=r"'tables'.* is .*other/tables, not stockstream's: .*environment of its own"):
        require_own_packages(ours)


def test_a_module_in_the_place_of_a_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    ours = _packages(tmp_path, "tables", "models")
    (tmp_path / "agents.py").touch()
    monkeypatch.syspath_prepend(ours)
    with pytest.raises(StockstreamError, match="'agents'"):
        require_own_packages(ours)


def test_two_distributions_in_one_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    ours = _packages(tmp_path / "site-packages", *OURS)
    monkeypatch.syspath_prepend(ours)

    def distribution(name: str) -> str:
        if name == "openai-agents":
            return name
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages, "distribution", distribution)
    with pytest.raises(StockstreamError, match="openai-agents and stockstream both install a package 'agents'"):
        require_own_packages(ours)
