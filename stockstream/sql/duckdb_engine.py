"""The engine on this machine: an embedded DuckDB that reads the objects of an archive, wherever it is, and can do nothing else.

It reads exactly the objects that count, which `current` lists, each by its name. If a compaction replaces one of them before it is read, the query runs again
on a new list; so it sees every row once, or fails.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.current import current
from stockstream.sinks.s3 import S3Store
from stockstream.sinks.stores import FileStore
from stockstream.sql.errors import ArchiveChanged, SqlError
from stockstream.sql.objects import Bucket, Folder, Listing, differ, first_unreadable, stored_rows, view_sql
from stockstream.sql.results import ATTEMPTS, Result
from stockstream.sql.statements import checked, reason
from stockstream.sql.texts import projection
from stockstream.sql.views import VIEWS
from stockstream.sql.waiting import Waiting

Parameters = Sequence[Any] | Mapping[str, Any] | None

BATCH = 20_000
"""Rows of a batch of a result."""
FRESH_S = 5.0
"""A list of objects older than this is made anew for the next query: of a shell, for example."""
MEMORY = "50%"
"""Of the machine's memory. What a query needs beyond it goes to the temporary folder."""
SEARCH_S = 20.0
"""How long a query that found unreadable bytes looks for the object that has them."""

_FAILURES = (duckdb.Error, RuntimeError, OSError, pa.ArrowException)
"""What reading raises: while rows come as Arrow, DuckDB's errors are OSError or RuntimeError."""
_DIFFERENT = "schema mismatch in glob"
_OF_THE_USER = (duckdb.ParserException, duckdb.CatalogException, duckdb.BinderException, duckdb.InterruptException)


@dataclass(frozen=True)
class Limits:
    """What a query may use. `memory`: of DuckDB, as `500MB` or `50%`. `threads`: None for one per core. `timeout_s`: from its start to its last row."""

    memory: str = MEMORY
    threads: int | None = None
    timeout_s: float | None = None


class DuckdbEngine:
    """Runs SQL over the archive in `store`. The views of `VIEWS` are there by name, and nothing else can be read or written.

    Objects are listed when a query first needs them, only those in the folders of dates `begin` to `end` where these are given. One query runs at a time: it
    ends when the next one starts. `waited(seconds)` is called while a query runs. Use the engine in a `with` block, or `close` it.
    Without `progress`, that of a query is not known; in a notebook DuckDB measures it only with ipywidgets.
    """

    def __init__(
        self, store: FileStore | S3Store, begin: date | None = None, end: date | None = None, *, limits: Limits | None = None,
        waited: Callable[[float], None] = lambda _: None, progress: bool = True,
    ) -> None:  # fmt: skip
        self.store, self._dates, self.limits, self.waited = store, (begin, end), limits or Limits(), waited
        self._listings: dict[str, Listing] = {}
        self._temporary = Path(tempfile.gettempdir()) / f"stockstream-query-{uuid.uuid4().hex[:12]}"
        self._connection = duckdb.connect(config={"autoload_known_extensions": False, "autoinstall_known_extensions": False})
        self._views = self._connection.cursor()                              # for listings and views: the other one may have a result open
        self._reader: pa.RecordBatchReader | None = None
        self._place = Bucket(store, self._connection) if isinstance(store, S3Store) else Folder(store)
        for area in {view.area for view in VIEWS.values()}:
            self._create_views(area, Listing([], 0.0))
        for setting in (
            f"memory_limit={_quoted(self.limits.memory)}", *([f"threads={self.limits.threads}"] if self.limits.threads else []),
            f"temp_directory={_quoted(str(self._temporary))}", "TimeZone='UTC'", "python_enable_replacements=false",
            "parquet_metadata_cache=true",                                   # a compacted day's footers take as long to read as a symbol's rows
            *(["enable_progress_bar=true", "enable_progress_bar_print=false"] if progress else []),
            f"allowed_directories=[{_quoted(self._place.allowed)}]", "enable_external_access=false", "lock_configuration=true",
        ):  # fmt: skip
            self._connection.execute(f"SET {setting}")

    def __enter__(self) -> DuckdbEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._release()
        self._connection.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def run(self, sql: str, params: Parameters = None, rows: int = BATCH) -> Result:
        """The result of one SELECT or EXPLAIN in batches of about `rows`, the first of which is there. Later ones come as they are read.

        `params`: the values of `?` and `$1` by place, or of `$name` by name.
        Raises `SqlError`, of it `QueryTooLong`; `ArchiveError` where the archive cannot be read, of it `ArchiveChanged`; and KeyboardInterrupt after Ctrl-C,
        which ends the query.
        """
        statement = checked(self._views, sql)
        areas = sorted({VIEWS[name].area for name in statement.tables & set(VIEWS)})
        again = None if statement.reads_files else lambda: self.run(sql, params, rows)
        return self._result(lambda: sql, areas, again, params, rows)

    def stored(self, area: str, columns: Sequence[str], where: str = "") -> Result:
        """These columns of the rows of an area that count as they are stored: all revisions, also with the columns of the folders. `where` begins with AND.

        Raises as `run` does.
        """
        names = ", ".join(f'"{name}"' for name in columns)

        def sql() -> str:
            return f"SELECT {names} FROM ({self._stored_rows(area, self._listings[area])}) WHERE true{where}"

        return self._result(sql, [area], lambda: self.stored(area, columns, where))

    def _result(
        self, sql: Callable[[], str], areas: Sequence[str], again: Callable[[], Result] | None, params: Parameters = None, rows: int = BATCH,
    ) -> Result:  # fmt: skip
        """The result of SQL that reads these areas, made for each attempt. `again` runs it once more; None: the SQL names objects by itself."""
        self._release()
        for area in areas:
            self._listing(area, FRESH_S)
        read = areas if again is not None else sorted({*areas, *self._listings})
        waiting = Waiting(self._connection.interrupt, self.waited, self.limits.timeout_s)
        for _ in range(ATTEMPTS):
            try:
                reader, first = waiting.run(lambda: self._start(sql(), params, rows))
                break
            except _FAILURES as error:
                if not (self._reads_differing(error, areas) or self._has_changed(error, read)):
                    raise self._failure(error, read) from error
                if again is None:
                    raise self._changed() from error
        else:
            raise self._changed()

        def batches() -> Iterator[pa.RecordBatch]:
            batch = first
            while batch is not None:
                yield batch
                try:
                    batch = waiting.run(lambda: next(reader, None))
                except _FAILURES as error:
                    if self._reads_differing(error, areas) or self._has_changed(error, read):
                        raise self._changed() from error
                    raise self._failure(error, read) from error

        return Result(reader.schema, batches(), self._notices(sql(), areas, nothing=first is None), self._release, again)

    def progress(self) -> float:
        """The share of the running query that is done, 0 to 1, as DuckDB estimates it; below 0 if it does not know."""
        return float(self._connection.query_progress()) / 100

    def columns(self, view: str) -> list[tuple[str, str]]:
        """Name and type in SQL of the view's columns."""
        return [(name, kind) for name, kind, *_ in self._views.execute(f"DESCRIBE {view}").fetchall()]

    def dates(self, area: str) -> list[str]:
        """The dates of which the area has objects, `YYYY-MM-DD`, ascending."""
        return self._listing(area, FRESH_S).dates()

    def _start(self, sql: str, params: Parameters, rows: int) -> tuple[pa.RecordBatchReader, pa.RecordBatch | None]:
        relation = self._connection.sql(sql, params=params)
        if (selected := projection(relation.columns, relation.types)) is not None:
            relation = relation.project(selected)
        self._reader = relation.to_arrow_reader(rows)
        return self._reader, next(self._reader, None)

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _listing(self, area: str, fresh_s: float) -> Listing:
        """The objects of the area that count, listed at most `fresh_s` ago, and views over them. Raises `ArchiveError`."""
        before = self._listings.get(area)
        if before is not None and time.monotonic() - before.listed_at <= fresh_s:
            return before
        for _ in range(ATTEMPTS):
            entries = current(self.store, area, *self._dates)
            if before is not None and before.entries == entries:
                before.listed_at = time.monotonic()
                return before
            listing = self._listings[area] = Listing(entries, time.monotonic())
            try:
                listing.differs = area != "raw" and bool(entries) and differ(self._views, self._place.paths(entries), entries, area)
                self._create_views(area, listing)                        # reads the columns of an object
                return listing
            except _FAILURES as error:
                there = {entry.name for entry in current(self.store, area, *self._dates)}
                failure = self._failure(error, [area]) if {entry.name for entry in entries} <= there else None
                del self._listings[area]
                before = None
                if failure is not None:
                    raise failure from error
        raise self._changed()

    def _changed(self) -> ArchiveChanged:
        return ArchiveChanged(f"{self.store.url}: a compaction replaced objects while they were read; run the query again")

    def _stored_rows(self, area: str, listing: Listing) -> str:
        return stored_rows(area, self._place.paths(listing.entries), differs=listing.differs)

    def _create_views(self, area: str, listing: Listing) -> None:
        stored = self._stored_rows(area, listing)
        for view in VIEWS.values():
            if view.area == area:
                self._views.execute(f"CREATE OR REPLACE VIEW {view.name} AS {view_sql(view, stored, listing.entries)}")

    def _reads_differing(self, error: BaseException, areas: Sequence[str]) -> bool:
        """Whether the error is that an object of an earlier release lacks a column. If so, the views now read the columns of every object."""
        listings = [(area, self._listings[area]) for area in areas if not self._listings[area].differs]
        if _DIFFERENT not in str(error) or not listings:
            return False
        for area, listing in listings:
            listing.differs = area != "raw"
            with contextlib.suppress(*_FAILURES):                        # an object is gone: the query meets the same error
                self._create_views(area, listing)
        return True

    def _has_changed(self, error: BaseException, areas: Sequence[str]) -> bool:
        """Whether an object that the query should read is no longer one that counts. Lists the areas anew, unless the error is of the user's SQL."""
        if isinstance(error, _OF_THE_USER):
            return False
        before = {area: {entry.name for entry in self._listings[area].entries} for area in areas}
        for area in areas:
            self._listing(area, -1)
        return any(not before[area] <= {entry.name for entry in self._listings[area].entries} for area in areas)

    def _failure(self, error: BaseException, areas: Sequence[str]) -> ArchiveError:
        """The error for the user, with the name of the object that cannot be read, if that is why."""
        if isinstance(error, _OF_THE_USER):
            columns = {name for area in areas for view in VIEWS.values() if view.area == area for name in view.columns}
            return SqlError(reason(str(error), columns))
        text = reason(str(error))
        if isinstance(error, duckdb.ConversionException | duckdb.OutOfRangeException | duckdb.OutOfMemoryException):
            return SqlError(text)
        for area in areas:
            found = first_unreadable(self._views, area, self._place.paths(self._listings[area].entries), SEARCH_S)
            if found is not None:
                return SqlError(f"{found} cannot be read: {text} (stockstream verify checks the whole archive)")
        return SqlError(text)

    def _notices(self, sql: str, areas: Sequence[str], *, nothing: bool) -> tuple[str, ...]:
        return tuple(notice for area in areas if (notice := self._listings[area].notice(area, sql, nothing=nothing)))


def connect(archive: Path | FileStore | S3Store) -> DuckdbEngine:
    """The engine over an archive in a folder or a bucket."""
    return DuckdbEngine(archive if isinstance(archive, FileStore | S3Store) else FileStore(archive))


def require_one_select(sql: str) -> None:
    """Raises `SqlError` if this is not one SELECT or EXPLAIN."""
    with duckdb.connect() as connection:
        checked(connection, sql)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
