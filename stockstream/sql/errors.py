"""What goes wrong with a query."""

from __future__ import annotations

from stockstream.errors import ArchiveError


class SqlError(ArchiveError):
    """The user's SQL fails; the text is one line."""


class QueryTooLong(SqlError):
    """The query took longer than its time limit, and was ended."""


class ArchiveChanged(ArchiveError):
    """A compaction replaced an object while it was read. The same query succeeds on a new list of objects."""

    retriable = True
