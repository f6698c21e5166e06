"""What goes wrong with a query."""

from __future__ import annotations

from stockstream.errors import ArchiveError


class SqlError(ArchiveError):
    """The user's SQL fails; the text is one line."""
