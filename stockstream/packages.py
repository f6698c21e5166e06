"""Checks installed packages: that `agents`, `tables` and `models`, which are common names, are stockstream's, and that patched libraries fit."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

from stockstream.endings import stop_start
from stockstream.errors import SettingsError, StockstreamError

OURS = ("agents", "tables", "models")
OTHERS = {"agents": "openai-agents", "tables": "tables"}
"""Distributions with a package of the same name. In one folder with stockstream, the one installed last overwrites the other."""

TRIED = {"aiokafka": ((0, 14), (0, 15)), "faust-streaming": ((0, 15, 3), (0, 16))}
"""By library with replaced parts: the first tested version, and the first that is not. pyproject.toml requires the same."""


def require_own_packages(root: Path | None = None) -> None:
    """Raises `StockstreamError` if one of `OURS` would not be imported from the folder `root`, by default the one that holds `stockstream`."""
    root = root or Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = find_spec(name)
        places = {Path(place).resolve() for place in spec.submodule_search_locations or ()} if spec else set()
        if places != {root / name}:
            found = f"is {min(places)}" if places else "is a module or is missing"
            raise StockstreamError(f"the package {name!r} that Python finds {found}, not stockstream's: give stockstream a virtual environment of its own")
        other = OTHERS.get(name)
        if other and root.name == "site-packages" and _is_installed(other):
            raise StockstreamError(f"{other} and stockstream both install a package {name!r}: give stockstream a virtual environment of its own")


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def require_tried_versions() -> None:
    """Raises `SettingsError` if a library with replaced parts is missing, or has a version that was not tested."""
    for name, (first, end) in TRIED.items():
        wanted = f"{name}>={_text(first)},<{_text(end)}"
        try:
            found = version(name)
        except PackageNotFoundError:
            raise SettingsError(f"{name} is not installed: pip install '{wanted}'") from None
        if not first <= _numbers(found) < end:
            raise SettingsError(f"{name} {found} was not tried with stockstream, which replaces parts of it: pip install '{wanted}'")


def require_installation() -> None:
    """Ends the start with one line if the installed packages cannot work."""
    try:
        require_own_packages()
        require_tried_versions()
    except StockstreamError as error:
        stop_start(error)


def _numbers(found: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", found)[:3])


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
