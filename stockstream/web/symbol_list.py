"""The symbols of the views in alphabetical order, with the text that a search reads."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator


class SymbolList:
    """Symbols with their names."""

    def __init__(self) -> None:
        self._sorted: list[str] = []
        self._texts: dict[str, str] = {}
        """By symbol: the text that a search reads."""

    def __len__(self) -> int:
        return len(self._sorted)

    def show(self, symbol: str, name: str | None = None) -> None:
        """Lists a symbol; A search also reads `name` if it is given."""
        if symbol not in self._texts:
            insort(self._sorted, symbol)
            self._texts[symbol] = symbol.casefold()
        if name is not None:
            self._texts[symbol] = f"{symbol.casefold()}\n{name.casefold()}"

    def hide(self, symbol: str) -> None:
        """Removes a symbol if it is listed."""
        if self._texts.pop(symbol, None) is not None:
            del self._sorted[bisect_left(self._sorted, symbol)]

    def after(self, symbol: str = "", search: str = "") -> Iterator[str]:
        """Symbols after this one whose symbol or name contains `search`, ignoring case."""
        begin = bisect_right(self._sorted, symbol) if symbol else 0
        names = self._sorted[begin:] if begin else self._sorted
        wanted = search.casefold()
        if not wanted:
            return iter(names)
        texts = self._texts
        return (name for name in names if wanted in texts[name])
