"""Runs SQL on Athena: starts a query, waits for it, stops it, and reads its rows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any

import pyarrow as pa

from stockstream.aws import AwsError, asking, client
from stockstream.errors import SettingsError
from stockstream.settings import Settings
from stockstream.sql.athena.tables import DATABASE, WORKGROUP, Catalog
from stockstream.sql.errors import SqlError
from stockstream.sql.results import Result

PRICE_PER_TB = 5.00
"""USD for each TB scanned in most regions, as of November 2025: https://aws.amazon.com/athena/pricing/"""
BILLED_AT_LEAST = 10_000_000
"""Bytes that each query of data is billed at least; the same page."""
PAUSE_S, MAX_PAUSE_S = 0.1, 1.0
CREATE = "create them with: stockstream athena create"
_READING = frozenset({"select", "with", "values", "table", "show", "describe", "desc"})
_SPACE = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+")
_EXPLAIN = re.compile(r"explain(?:\s+analyze)?(?:\s+verbose)?(?:\s*\(\s*(?:type|format)\b[^)]*\))?\s", re.IGNORECASE)
_MISSING = re.compile(r"(?:schema|table|database)\b.*does not exist|(?:SCHEMA|TABLE)_NOT_FOUND", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a query is: Athena's state (`QUEUED RUNNING SUCCEEDED FAILED CANCELLED`), the seconds since its start, the bytes that it has scanned."""

    state: str
    seconds: float
    scanned: int


def cost(scanned: int) -> float:
    """What a query costs that has scanned this many bytes, in USD, about."""
    return max(scanned, BILLED_AT_LEAST) * PRICE_PER_TB / 1e12 if scanned else 0.0


def require_read_only(sql: str) -> None:
    """Raises `SqlError` if the statement would write or change something. (Athena itself takes one statement at a time.)"""
    begin = _SPACE.match(sql)
    rest = sql[begin.end() :] if begin else sql
    if explained := _EXPLAIN.match(rest):
        return require_read_only(rest[explained.end() :])
    word = _WORD.match(rest)
    if word is None:
        raise SqlError("one SQL statement is expected")
    if word[0].lower() not in _READING:
        raise SqlError(f"the archive is read-only: only SELECT and EXPLAIN are allowed, not {word[0].upper()}")
    return None


class AthenaEngine:
    """Queries in one database and workgroup, by boto3's clients of Athena and Glue. Errors of AWS are `AwsError`.

    A query is stopped on Athena when it has scanned `scan_limit` bytes (0: no limit), and by any exception, such as Ctrl-C. `step` is called while it runs.
    """

    def __init__(
        self, athena: Any, glue: Any, database: str = DATABASE, workgroup: str = WORKGROUP, scan_limit: int = 0, step: Callable[[Progress], None] | None = None,
    ) -> None:  # fmt: skip
        self._athena, self._glue = athena, glue
        self._database, self._workgroup = database, workgroup
        self._scan_limit, self._step = scan_limit, step or (lambda _: None)

    @classmethod
    def of(
        cls, settings: Settings, database: str = DATABASE, workgroup: str = WORKGROUP, scan_limit: int = 0, step: Callable[[Progress], None] | None = None,
    ) -> AthenaEngine:  # fmt: skip
        return cls(client("athena", settings), client("glue", settings), database, workgroup, scan_limit, step)

    def __enter__(self) -> AthenaEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass

    def require_tables(self, archive: str) -> None:
        """Raises `SettingsError` if the database has no tables, or those of another archive."""
        wanted = next(table for table in Catalog(archive, self._database).table_inputs() if table["Name"] == "ticks_objects")
        try:
            with asking("glue"):
                found = self._glue.get_table(DatabaseName=self._database, Name=wanted["Name"])["Table"]["StorageDescriptor"]["Location"]
        except AwsError as error:
            if error.code != "EntityNotFoundException":
                raise
            raise SettingsError(f"Athena has no tables of the archive in database {self._database}: {CREATE}") from error
        if found.rstrip("/") != wanted["StorageDescriptor"]["Location"].rstrip("/"):
            raise SettingsError(f"the tables in database {self._database} are those of {found}, and not of {archive}: choose another with --database")

    def run(self, sql: str) -> Result:
        """The result of a query; its notice has the bytes scanned and the cost. Raises `SqlError` if the query is wrong, or would write."""
        require_read_only(sql)
        query, statistics = self.execute(sql)
        scanned, seconds = int(statistics.get("DataScannedInBytes") or 0), int(statistics.get("EngineExecutionTimeInMillis") or 0) / 1000
        notice = f"Athena scanned {scanned / 1e6:,.2f} MB in {seconds:.1f} s: about ${cost(scanned):.6f} at ${PRICE_PER_TB:g} a TB"
        return self._result(query, notice)

    def execute(self, sql: str) -> tuple[str, dict[str, Any]]:
        """Executes any statement, waits for its end, and returns its id and statistics. Raises as `run` does."""
        query = self._start(sql)
        begin, pause = time.monotonic(), PAUSE_S
        try:
            while True:
                with asking("athena"):
                    execution = self._athena.get_query_execution(QueryExecutionId=query)["QueryExecution"]
                status, statistics = execution["Status"], execution.get("Statistics") or {}
                scanned = int(statistics.get("DataScannedInBytes") or 0)
                self._step(Progress(status["State"], time.monotonic() - begin, scanned))
                if status["State"] == "SUCCEEDED":
                    return query, statistics
                if status["State"] in ("FAILED", "CANCELLED"):
                    break
                if self._scan_limit and scanned > self._scan_limit:
                    raise SqlError(f"the query was stopped: it has scanned {scanned:,} bytes, and --scan-limit is {self._scan_limit:,}")
                time.sleep(pause)
                pause = min(pause * 1.5, MAX_PAUSE_S)
        except BaseException:
            self._stop(query)
            raise
        raise _failure(status.get("StateChangeReason") or f"the query ended as {status['State']}")

    def _start(self, sql: str) -> str:
        try:
            with asking("athena"):
                started: str = self._athena.start_query_execution(
                    QueryString=sql, QueryExecutionContext={"Database": self._database, "Catalog": "AwsDataCatalog"}, WorkGroup=self._workgroup
                )["QueryExecutionId"]
                return started
        except AwsError as error:
            if error.code == "InvalidRequestException":
                if re.search(r"workgroup|output location", str(error), re.IGNORECASE):
                    raise SettingsError(f"Athena has no workgroup {self._workgroup} with a place for results: {CREATE}") from error
                raise SqlError(str(error)) from error
            raise

    def _stop(self, query: str) -> None:
        try:
            with asking("athena"):
                self._athena.stop_query_execution(QueryExecutionId=query)
        except AwsError:                                                 # the reason to stop is the error to show
            return

    def _result(self, query: str, notice: str) -> Result:
        pages = self._pages(query)
        first = next(pages)
        described = first["ResultSetMetadata"]["ColumnInfo"]
        schema = pa.schema([pa.field(one["Name"], _arrow_type(one)) for one in described])

        def batches() -> Iterator[pa.RecordBatch]:
            page: dict[str, Any] | None = first
            while page is not None:
                rows = [[cell.get("VarCharValue") for cell in row.get("Data", ())] for row in page["Rows"]]
                if page is first and rows and rows[0] == schema.names:   # the first row of a query's answer is its columns' names
                    rows = rows[1:]
                columns = zip(*rows, strict=True) if rows else [()] * len(schema)
                yield pa.record_batch([_array(texts, field.type) for texts, field in zip(columns, schema, strict=True)], schema=schema)
                page = next(pages, None)

        return Result(schema, batches(), (notice,))

    def _pages(self, query: str) -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {}
        while True:
            with asking("athena"):
                answer = self._athena.get_query_results(QueryExecutionId=query, MaxResults=1000, **more)
            yield answer["ResultSet"]
            if not answer.get("NextToken"):
                return
            more = {"NextToken": answer["NextToken"]}


_ARROW = {
    "tinyint": pa.int32(), "smallint": pa.int32(), "integer": pa.int32(), "int": pa.int32(), "bigint": pa.int64(), "double": pa.float64(),
    "float": pa.float64(), "real": pa.float64(), "boolean": pa.bool_(), "date": pa.date32(), "timestamp": pa.timestamp("us"),
}  # fmt: skip


def _failure(reason: str) -> SqlError:
    reason = " ".join(reason.split("\n\n")[0].split())
    if _MISSING.search(reason):
        return SqlError(f"Athena: {reason} (the tables and views of the archive: {CREATE})")
    return SqlError(f"Athena: {reason}")


def _arrow_type(column: Mapping[str, Any]) -> pa.DataType:
    """The type of a column of a result; one without a form of its own here (arrays, times with a zone) stays text."""
    kind = column["Type"].partition("(")[0].strip().lower()
    return pa.decimal128(38, column.get("Scale") or 0) if kind == "decimal" else _ARROW.get(kind, pa.string())


def _array(texts: Iterable[str | None], kind: pa.DataType) -> pa.Array:
    parse: Callable[[str], Any] = str
    if pa.types.is_integer(kind):
        parse = int
    elif pa.types.is_floating(kind):
        parse = float
    elif pa.types.is_boolean(kind):
        parse = "true".__eq__
    elif pa.types.is_date(kind):
        parse = date.fromisoformat
    elif pa.types.is_timestamp(kind):
        parse = datetime.fromisoformat
    elif pa.types.is_decimal(kind):
        parse = Decimal
    return pa.array([None if text is None else parse(text) for text in texts], kind)
