"""Queries on Athena, with a service that answers as it is made to."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from stockstream.aws import AwsError, AwsUnavailable
from stockstream.errors import SettingsError
from stockstream.sql.athena import engine
from stockstream.sql.athena.engine import AthenaEngine, Progress, cost, require_read_only
from stockstream.sql.errors import SqlError


class Service:
    """Athena and Glue in one: the states of a query in turn (the last one stays), with the bytes scanned so far, then its pages of rows."""

    def __init__(self, *states: tuple[str, int], reason: str = "", pages: list[dict[str, Any]] | None = None, error: Exception | None = None) -> None:
        self._states, self._reason, self._pages, self._error = list(states), reason, pages or [], error
        self.started: list[dict[str, Any]] = []
        self.stopped: list[str] = []

    def start_query_execution(self, **given: Any) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        self.started.append(given)
        return {"QueryExecutionId": "q1"}

    def get_query_execution(self, **_: Any) -> dict[str, Any]:
        state, scanned = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        status = {"State": state, "StateChangeReason": self._reason}
        return {"QueryExecution": {"Status": status, "Statistics": {"DataScannedInBytes": scanned, "EngineExecutionTimeInMillis": 1500}}}

    def get_query_results(self, **given: Any) -> dict[str, Any]:
        number = int(given.get("NextToken", 0))
        more = {"NextToken": str(number + 1)} if number + 1 < len(self._pages) else {}
        return {"ResultSet": self._pages[number], **more}

    def stop_query_execution(self, **given: Any) -> None:
        self.stopped.append(given["QueryExecutionId"])

    def get_table(self, **_: Any) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        return {"Table": {"StorageDescriptor": {"Location": "s3://bucket/archive/processed/ticks"}}}


def page(types: dict[str, str], *rows: tuple[str | None, ...]) -> dict[str, Any]:
    columns = [{"Name": name, "Type": kind, "Scale": 2 if kind == "decimal" else 0} for name, kind in types.items()]
    data = [{"Data": [{} if value is None else {"VarCharValue": value} for value in row]} for row in rows]
    return {"ResultSetMetadata": {"ColumnInfo": columns}, "Rows": data}


def refusal(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "StartQueryExecution")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PAUSE_S", 0.0)


def test_rows_have_the_types_of_their_columns_and_the_answer_its_cost() -> None:
    types = {"n": "bigint", "x": "double", "day": "date", "at": "timestamp", "yes": "boolean", "text": "varchar", "d": "decimal"}
    first = page(types, tuple(types), ("1", "2.5", "2023-10-10", "2023-10-10 12:00:00.250", "true", "a", "1.50"))
    second = page(types, ("2", None, None, None, "false", None, None))
    service = Service(("QUEUED", 0), ("RUNNING", 10), ("SUCCEEDED", 20_000_000), pages=[first, second])
    seen: list[Progress] = []
    result = AthenaEngine(service, service, step=seen.append).run("SELECT 1")
    assert result.columns == list(types) and result.fetch() == ([
        (1, 2.5, date(2023, 10, 10), datetime.fromisoformat("2023-10-10 12:00:00.250"), True, "a", Decimal("1.50")), (2, None, None, None, False, None, None),
    ], False)  # fmt: skip
    assert result.notices == ("Athena scanned 20.00 MB in 1.5 s: about $0.000100 at $5 a TB",)
    assert [progress.state for progress in seen] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    context = {"Database": "stockstream", "Catalog": "AwsDataCatalog"}
    assert service.started == [{"QueryString": "SELECT 1", "QueryExecutionContext": context, "WorkGroup": "stockstream"}] and not service.stopped


def test_a_limit_leaves_out_rows_and_pages() -> None:
    pages = [page({"n": "bigint"}, ("n",), *((str(number),) for number in range(3))), page({"n": "bigint"}, ("3",))]
    service = Service(("SUCCEEDED", 0), pages=pages)
    assert AthenaEngine(service, service).run("SELECT n").fetch(3) == ([(0,), (1,), (2,)], True)
    assert AthenaEngine(service, service).run("SELECT n").fetch(4) == ([(0,), (1,), (2,), (3,)], False)


def test_an_answer_without_rows_has_its_columns() -> None:
    service = Service(("SUCCEEDED", 0), pages=[page({"n": "bigint", "text": "varchar"}, ("n", "text"))])
    result = AthenaEngine(service, service).run("SELECT n")
    assert result.columns == ["n", "text"] and result.fetch() == ([], False)


def test_a_query_costs_at_least_what_athena_bills() -> None:
    assert cost(0) == 0.0 and cost(1) == pytest.approx(5e-5) and cost(2 * 10**12) == pytest.approx(10.0)


def test_ctrl_c_stops_the_query_on_athena() -> None:
    service = Service(("RUNNING", 5))

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AthenaEngine(service, service, step=interrupt).run("SELECT 1")
    assert service.stopped == ["q1"]


def test_a_query_that_scans_more_than_its_limit_is_stopped() -> None:
    service = Service(("RUNNING", 5), ("RUNNING", 2_000))
    with pytest.raises(SqlError, match="it has scanned 2,000 bytes, and --scan-limit is 1,000"):
        AthenaEngine(service, service, scan_limit=1_000).run("SELECT 1")
    assert service.stopped == ["q1"]


@pytest.mark.parametrize("sql", [
    "INSERT INTO ticks SELECT * FROM ticks", "CREATE TABLE t AS SELECT 1", "drop view ticks", "UNLOAD (SELECT 1) TO 's3://b/x'", "DELETE FROM ticks",
    "EXPLAIN ANALYZE INSERT INTO t VALUES (1)", "-- SELECT\nDROP TABLE t", "/* SELECT */ MERGE INTO t", "EXECUTE q", "PREPARE q FROM DELETE FROM t",
    "MSCK REPAIR TABLE t", "", "-- only a comment", "explain (type logical) DELETE FROM t",
])  # fmt: skip
def test_a_statement_that_would_write_is_not_sent(sql: str) -> None:
    service = Service(("SUCCEEDED", 0))
    with pytest.raises(SqlError, match=r"read-only|one SQL statement"):
        AthenaEngine(service, service).run(sql)
    assert not service.started


@pytest.mark.parametrize("sql", [
    "select 1", "  (SELECT 1) UNION (SELECT 2)", "-- a\n/* b\nc */ WITH a AS (SELECT 1) SELECT * FROM a", "EXPLAIN SELECT 1", "EXPLAIN ANALYZE SELECT 1",
    "explain (type distributed) WITH a AS (SELECT 1) SELECT * FROM a", "VALUES (1)", "SHOW TABLES", "DESCRIBE ticks",
])  # fmt: skip
def test_a_statement_that_reads_is(sql: str) -> None:
    require_read_only(sql)


@pytest.mark.parametrize(("error", "kind", "text"), [
    (refusal("InvalidRequestException", "WorkGroup stockstream is not found."), SettingsError, "has no workgroup stockstream .*stockstream athena create"),
    (refusal("InvalidRequestException", "line 1:8: mismatched input"), SqlError, "Athena: line 1:8: mismatched input"),
    (refusal("AccessDeniedException", "not authorized to perform: athena:StartQueryExecution"), AwsError, "access is denied: not authorized to perform"),
    (refusal("ExpiredTokenException", "The security token included in the request is expired"), AwsError, "credentials have expired: sign in again"),
    (refusal("UnrecognizedClientException", "The security token is invalid"), AwsError, "the access key is not known there"),
    (refusal("ThrottlingException", "Rate exceeded"), AwsUnavailable, "too much to do"),
    (NoCredentialsError(), AwsError, "there are no AWS credentials: set AWS_PROFILE"),
    (EndpointConnectionError(endpoint_url="http://x"), AwsUnavailable, "no answer from http://x"),
], ids=["workgroup", "syntax", "denied", "expired", "key", "throttled", "none", "down"])  # fmt: skip
def test_a_refusal_is_one_line(error: Exception, kind: type[Exception], text: str) -> None:
    service = Service(error=error)
    with pytest.raises(kind, match=text) as raised:
        AthenaEngine(service, service).run("SELECT 1")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("reason", "text"), [
    ("COLUMN_NOT_FOUND: line 1:8: Column 'nothing' cannot be resolved", "Athena: COLUMN_NOT_FOUND: line 1:8: Column 'nothing' cannot be resolved$"),
    ("TABLE_NOT_FOUND: line 1:15: Table 'awsdatacatalog.stockstream.ticks' does not exist", "stockstream athena create"),
    ("Query exhausted resources\nat this scale factor", "exhausted resources at this scale factor"),
    ("", "ended as FAILED"),
])  # fmt: skip
def test_a_failed_query_is_one_line(reason: str, text: str) -> None:
    service = Service(("RUNNING", 0), ("FAILED", 0), reason=reason)
    with pytest.raises(SqlError, match=text) as raised:
        AthenaEngine(service, service).run("SELECT 1")
    assert "\n" not in str(raised.value)


def test_tables_are_required_and_those_of_this_archive() -> None:
    AthenaEngine(Service(), Service()).require_tables("s3://bucket/archive")
    with pytest.raises(SettingsError, match=r"those of s3://bucket/archive/processed/ticks, and not of s3://bucket/other: .*--database"):
        AthenaEngine(Service(), Service()).require_tables("s3://bucket/other")
    missing = Service(error=refusal("EntityNotFoundException", "Database stockstream not found."))
    with pytest.raises(SettingsError, match="no tables of the archive in database stockstream: create them with: stockstream athena create"):
        AthenaEngine(missing, missing).require_tables("s3://bucket/archive")
