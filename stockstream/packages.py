"""The top-level packages `agents`, `tables` and `models` have common names: is what Python finds ours?"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from stockstream.errors import StockstreamError

OURS = ("agents", "tables", "models")
OTHERS = {"agents": "openai-agents", "tables": "tables"}
"""Distributions that bring a package of the same name; beside us in one folder, whichever was installed last has written over the other."""


def require_own_packages(root: Path | None = None) -> None:
    """Raise `StockstreamError` where one of `OURS` would be imported from elsewhere than beside `stockstream` (`root`)."""
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
