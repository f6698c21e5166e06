"""`stockstream query` and `stockstream verify` on a small archive."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from stockstream.commands import query, verify
from stockstream.errors import ArchiveError, SettingsError
from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.s3 import S3Access, S3Store
from stockstream.sinks.stores import FileStore
from stockstream.sql.duckdb_engine import connect
from stockstream.sql.errors import SqlError
from stockstream.sql.outputs import TABLE_ROWS
from stockstream.sql.views import EXAMPLE, VIEWS
from tests.archives import Record, append
from tests.standins.s3 import SECRET, s3_server

T0 = 1_760_000_000_000 // 3_600_000 * 3_600_000     # 2025-10-09 08:00


def _record(offset: int, value: bytes, timestamp: int = T0) -> Record:
    return Record(offset, timestamp + offset, value, b"A")


def _archive(root: Path, more: float = 0) -> None:
    """Three objects; every size has `more` added. The second one has a tick that comes late and one that shares its second with the first object's last."""
    chain = Chain(FileStore(root), "log1", 2)
    reported: list[tuple[int, list[tuple[str, int, float | None, int]]]] = [
        (0, [("A", T0, 10.0, 5), ("B", T0 + 1_500, 7.0, 1)]),
        (1, [("A", T0 + 30_900, 12.0, 5), ("A", T0 + 59_900, 11.0, 10), ("A", T0 + 60_000, 11.5, 1), ("A", T0 + 60_100, None, 0)]),
        (2, [("A", T0 + 59_100, 11.25, 4), ("A", T0 + 40_000, 9.0, 2)]),
    ]
    for offset, rows in reported:
        table = pa.Table.from_pylist(
            [{"symbol": s, "source": "x", "event_time": at, "price": p, "size": n + more, "offset": offset, "index": i}
             for i, (s, at, p, n) in enumerate(rows)],
            schema=TICKS_SCHEMA,
        )  # fmt: skip
        append(chain, [_record(offset, b"{%d}" % offset)], table)


def _run(root: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(query.command, ["--archive", f"file://{root}", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_bars_are_made_of_all_their_parts(tmp_path: Path) -> None:
    _archive(tmp_path)
    bars = json.loads(_run(tmp_path, "--json", "SELECT * FROM bars_1m ORDER BY symbol, minute").stdout)
    assert bars == [
        {"symbol": "A", "source": "x", "minute": "2025-10-09T08:00:00", "open": 10.0, "high": 12.0, "low": 9.0, "close": 11.25, "volume": 26,
         "vwap": (50 + 60 + 110 + 45 + 18) / 26, "ticks": 5, "gap": False, "repaired": False, "date": "2025-10-09"},
        {"symbol": "A", "source": "x", "minute": "2025-10-09T08:01:00", "open": 11.5, "high": 11.5, "low": 11.5, "close": 11.5, "volume": 1, "vwap": 11.5,
         "ticks": 1, "gap": False, "repaired": False, "date": "2025-10-09"},
        {"symbol": "B", "source": "x", "minute": "2025-10-09T08:00:00", "open": 7.0, "high": 7.0, "low": 7.0, "close": 7.0, "volume": 1, "vwap": 7.0,
         "ticks": 1, "gap": False, "repaired": False, "date": "2025-10-09"},
    ]  # fmt: skip


def test_minutes_into_which_a_gap_of_the_feed_reaches_are_marked_and_none_is_invented(tmp_path: Path) -> None:
    """The minute before the gap is in an object of its own, and in another day's folder."""
    chain = Chain(FileStore(tmp_path), "log1", 2)
    chain.open()
    midnight = 1_760_054_400_000
    for offset, (after_s, gap_from) in enumerate([(-150, None), (-100, None), (30, midnight - 99_000), (90, None)]):
        tick = {"symbol": "A", "source": "x", "event_time": midnight + after_s * 1000, "price": 1.0, "size": 1, "offset": offset, "index": 0}
        tick |= {"flags": 8, "gap_from": gap_from} if gap_from else {}
        append(chain, [_record(offset, b"{}", midnight)], pa.Table.from_pylist([tick], TICKS_SCHEMA))
    rows = json.loads(_run(tmp_path, "--json", "SELECT minute, ticks, gap FROM bars_1m ORDER BY minute").stdout)
    assert [(row["minute"][11:16], row["ticks"], row["gap"]) for row in rows] == [
        ("23:57", 1, False), ("23:58", 1, True), ("00:00", 1, True), ("00:01", 1, False),
    ]  # fmt: skip


@pytest.mark.parametrize("every", [True, False])
def test_bars_of_a_release_without_gaps_are_read(tmp_path: Path, every: bool) -> None:
    _archive(tmp_path)
    for path in sorted((tmp_path / "processed/bars_1m").rglob("*.parquet"))[: None if every else 1]:
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["gap"]), path)
    assert json.loads(_run(tmp_path, "--json", "SELECT count(*) AS n, sum(ticks) AS ticks, bool_or(gap) AS gap FROM bars_1m").stdout) == [
        {"n": 3, "ticks": 7, "gap": False}
    ]


def test_ticks_and_raw(tmp_path: Path) -> None:
    _archive(tmp_path)
    assert _run(tmp_path, "--format", "csv", "SELECT count(*) AS n, max(event_time) AS newest, max(hour) AS h, max(date) AS d FROM ticks").stdout == (
        "n,newest,h,d\n8,2025-10-09 08:01:00.100000,8,2025-10-09\n"
    )
    sql = 'SELECT "offset", partition, timestamp, key, value, value_base64, log, hour FROM raw ORDER BY "offset"'
    raw = json.loads(_run(tmp_path, "--json", sql).stdout)
    expected = {"offset": 1, "partition": 2, "timestamp": T0 + 1, "key": "A", "value": "{1}", "value_base64": None, "log": "log1", "hour": 8}
    assert len(raw) == 3 and raw[1] == expected
    minutes = _run(tmp_path, "SELECT date_trunc('minute', event_time) AS minute, min_by(price, event_time) AS first FROM ticks GROUP BY 1 ORDER BY 1").stdout
    assert minutes.splitlines()[2:] == ["2025-10-09 08:00:00     10", "2025-10-09 08:01:00   11.5"]


def test_an_empty_archive_has_the_same_columns(tmp_path: Path) -> None:
    _archive(tmp_path / "full")
    for view in VIEWS:
        schemas = []
        for root in ("full", "empty"):
            with connect(tmp_path / root) as engine:
                schemas.append(engine.run(f"SELECT * FROM {view}").schema)
        assert schemas[0].equals(schemas[1])
    (tmp_path / "empty").mkdir()
    result = _run(tmp_path / "empty", "SELECT * FROM bars_1m")
    assert result.exit_code == 0 and "holds no archive yet" in result.stderr and result.stdout.startswith("symbol")


def test_limits(tmp_path: Path) -> None:
    many = "SELECT * FROM range(250)"
    assert len(_run(tmp_path, many).stdout.splitlines()) == TABLE_ROWS + 2
    assert "use --limit" in _run(tmp_path, many).stderr
    assert len(json.loads(_run(tmp_path, "--json", many).stdout)) == 250
    assert len(_run(tmp_path, "--limit", "0", many).stdout.splitlines()) == 252
    cut = _run(tmp_path, "--json", "--limit", "3", many)
    assert len(json.loads(cut.stdout)) == 3 and "use --limit" in cut.stderr


@pytest.mark.parametrize(
    "sql",
    ["SELEC 1", "SELECT nothing FROM ticks", "DROP VIEW ticks", "COPY (SELECT 1) TO '{tmp}/out.csv'", "SELECT 1; SELECT 2", "",
     "SELECT * FROM read_text('/etc/passwd')", "SET enable_external_access=true", "CREATE TABLE t (a INT)", "SELECT 'a'::INT"],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line(tmp_path: Path, sql: str) -> None:
    with pytest.raises(SqlError) as raised:
        _run(tmp_path, sql.format(tmp=tmp_path))
    assert "\n" not in str(raised.value) and str(raised.value)
    assert not (tmp_path / "out.csv").exists()


def test_without_sql_it_says_what_can_be_asked(tmp_path: Path) -> None:
    _archive(tmp_path)
    reported = _run(tmp_path).stdout
    for view in VIEWS:
        assert f"{view}: " in reported
    assert _run(tmp_path, EXAMPLE).exit_code == 0


def test_other_urls() -> None:
    for command in (query.command, verify.command):
        result = CliRunner().invoke(command, ["--archive", "gs://x/y"])
        assert isinstance(result.exception, SettingsError)


def test_verify_tells_what_is_there_and_what_is_wrong(tmp_path: Path) -> None:
    _archive(tmp_path)
    arguments = ["--archive", f"file://{tmp_path}", "--no-recompute"]    # its ticks are made up
    good = CliRunner().invoke(verify.command, arguments, standalone_mode=False)
    assert good.return_value == 0 and "offsets 0 to 2 once each (3 records, 0 offsets without one) in 3 objects; all processed, 8 ticks" in good.stdout
    assert good.stdout.splitlines()[-1] == "all is well: 1 chain, 3 records"
    assert json.loads(CliRunner().invoke(verify.command, [*arguments, "--json"], standalone_mode=False).stdout)["ok"] is True
    middle = sorted((tmp_path / "raw").rglob("*.zst"))[1]
    middle.unlink()
    bad = CliRunner().invoke(verify.command, arguments, standalone_mode=False)
    assert bad.return_value == 1 and "offsets 1 to 1 of log log1, partition 2 are missing before it" in bad.stdout
    reported = json.loads(CliRunner().invoke(verify.command, [*arguments, "--json"], standalone_mode=False).stdout)
    assert reported["ok"] is False and reported["faults"]


def _verify(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(verify.command, ["--archive", f"file://{root}", "--no-recompute", *arguments], standalone_mode=False)


def test_verify_says_what_is_not_processed_yet(tmp_path: Path) -> None:
    _archive(tmp_path)
    chain = Chain(FileStore(tmp_path), "log1", 2)
    chain.open()
    append(chain, [_record(3, b"{3}")])
    reported = _verify(tmp_path)
    assert reported.return_value == 0 and reported.stdout.splitlines() == [
        "log log1 partition 2: offsets 0 to 3 once each (4 records, 0 offsets without one)"
        " in 4 objects; processed through 2 of 3: 1 raw record not processed yet, 8 ticks (the first in date=2025-10-09/hour=08)",
        "every raw record is archived once: 1 chain, 4 records; 1 raw record of 1 chain not processed yet (a worker on the same log processes them)",
    ]
    answer = json.loads(_verify(tmp_path, "--json").stdout)
    assert (answer["ok"], answer["unprocessed"], answer["chains"][0]["unprocessed"], answer["chains"][0]["processed"]) == (True, 1, 1, 2)


def test_verify_says_so_where_nothing_is_processed(tmp_path: Path) -> None:
    chain = Chain(FileStore(tmp_path), "log1", 0)
    append(chain, [_record(0, b"{0}"), _record(1, b"{1}")])
    reported = _verify(tmp_path)
    assert reported.return_value == 0 and "in 1 object; processed nothing of 2: 2 raw records not processed yet, 0 ticks" in reported.stdout
    assert "of -1" not in reported.stdout and "all is well" not in reported.stdout


def test_an_archive_without_anything_is_no_archive_that_is_well(tmp_path: Path) -> None:
    reported = _verify(tmp_path)
    assert reported.return_value == 1 and reported.stdout == "" and reported.stderr == f"{tmp_path} holds no archive yet\n"
    answer = json.loads(_verify(tmp_path, "--json").stdout)
    assert answer["ok"] is False and answer["faults"] == [f"{tmp_path} holds no archive yet"]


@pytest.mark.parametrize("command", [query.command, verify.command])
def test_a_place_that_is_not_there_is_an_error(tmp_path: Path, command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (f"file://{tmp_path}/nothing", "file://./nothing"):
        result = CliRunner().invoke(command, ["--archive", url])
        assert isinstance(result.exception, ArchiveError) and str(result.exception) .startswith(f"there is no archive: {tmp_path}/nothing does not exist; ")
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(command, ["--archive", f"file://{tmp_path}/file"])
    assert "is not a folder" in str(result.exception)


@pytest.mark.parametrize("every", [True, False])
def test_whole_numbers_of_an_earlier_release_and_decimals_are_read_together(tmp_path: Path, every: bool) -> None:
    _archive(tmp_path, more=0.25)
    for folder, columns in (("ticks", ["size"]), ("bars_1m", ["volume"])):
        files = sorted((tmp_path / "processed" / folder).rglob("*.parquet"))
        for path in files[:-1] if every else files[:1]:
            table = pq.read_table(path, partitioning=None)
            for name in columns:
                table = table.set_column(table.column_names.index(name), name, table.column(name).cast(pa.int64(), safe=False))
            pq.write_table(table.drop_columns([name for name in ("flags", "gap_s", "price_before_gap") if name in table.column_names]), path)
    sizes = json.loads(_run(tmp_path, "--json", 'SELECT size FROM ticks ORDER BY "offset", "index"').stdout)
    assert [row["size"] for row in sizes][-2:] == [4.25, 2.25]
    (volume,) = json.loads(_run(tmp_path, "--json", "SELECT volume FROM bars_1m WHERE symbol = 'A' ORDER BY minute LIMIT 1").stdout)
    assert volume["volume"] == 26 + 0.25 * (2 if every else 4)


def test_whole_shares_are_printed_without_decimals(tmp_path: Path) -> None:
    _archive(tmp_path)
    assert _run(tmp_path, "--json", "SELECT volume, vwap FROM bars_1m WHERE symbol = 'B'").stdout == '[{"volume": 1, "vwap": 7.0}]\n'
    assert _run(tmp_path, "--format", "csv", "SELECT size FROM ticks WHERE symbol = 'B'").stdout == "size\n1\n"
    assert _run(tmp_path, "SELECT 12345678901::DOUBLE AS volume, 12345678901.25 AS price").stdout.splitlines()[2].split() == ["12345678901", "12345678901.25"]


@pytest.mark.parametrize("every", [True, False])
def test_objects_of_a_release_with_fewer_columns_are_read_with_nulls(tmp_path: Path, every: bool) -> None:
    _archive(tmp_path)
    for path in sorted((tmp_path / "processed/ticks").rglob("*.parquet"))[: None if every else 1]:
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["trade_id"]), path)
    rows = json.loads(_run(tmp_path, "--json", "SELECT symbol, trade_id, date FROM ticks WHERE date = '2025-10-09'").stdout)
    assert len(rows) == 8
    assert {(row["trade_id"], row["date"]) for row in rows} == {(None, "2025-10-09")}


SAME = (
    "SELECT * FROM bars_1m ORDER BY symbol, minute", "SELECT * FROM ticks ORDER BY \"offset\", \"index\"", "SELECT * FROM raw ORDER BY \"offset\"",
    "SELECT count(*) AS n FROM ticks WHERE date = '2025-10-09' AND hour = 8 AND symbol = 'A'", "SELECT count(*) AS n FROM ticks WHERE date = '2025-10-10'",
)  # fmt: skip


@pytest.mark.slow
def test_a_bucket_gives_the_same_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _archive(tmp_path)
    in_folder = FileStore(tmp_path)

    def asked(command: click.Command, url: str, *arguments: str) -> Result:
        return CliRunner().invoke(command, ["--archive", url, *arguments], standalone_mode=False)

    with s3_server(monkeypatch) as server:
        url = "s3://bucket/a b/it's"
        store = S3Store(url, S3Access(server.endpoint))
        empty = asked(query.command, url, "--json", SAME[0])
        assert empty.stdout == "[]\n" and empty.stderr == f"{url} holds no archive yet: the views are empty\n"
        assert f"{url} holds no archive yet" in asked(verify.command, url).stderr
        for name in in_folder.list(""):
            assert store.create(name, in_folder.read(name))
        server.client.put_object(Bucket="bucket", Key="elsewhere/secret.csv", Body=b"a,b")
        for sql in SAME:
            assert asked(query.command, url, "--json", sql).stdout == _run(tmp_path, "--json", sql).stdout != "", sql
        good = asked(verify.command, url, "--json", "--no-recompute")
        assert good.return_value == 0 and json.loads(good.stdout)["archive"] == url and json.loads(good.stdout)["chains"][0]["ticks"] == 8
        outside, write = "SELECT * FROM read_csv('s3://bucket/elsewhere/secret.csv')", "COPY (SELECT 1) TO 's3://bucket/a b/it''s/raw/x.csv'"
        for sql in (outside, write, "SELECT nothing FROM raw"):
            failed = asked(query.command, url, sql)
            assert isinstance(failed.exception, SqlError) and "\n" not in str(failed.exception), sql
        with connect(store) as engine:
            assert engine.run("SELECT count(*) FROM ticks").fetch() == ([(8,)], False)
            server.client.delete_object(Bucket="bucket", Key=f"a b/it's/{next(iter(store.list('processed/ticks/')))}")
            ((ticks,),), _ = engine.run("SELECT count(*) FROM ticks").fetch()
            assert ticks in (6, 8)                                       # as after a compaction; DuckDB keeps what it read of objects older than 10 s
        assert asked(verify.command, url).return_value == 1
        server.stop()
        for command, arguments in ((query.command, ["SELECT 1"]), (verify.command, [])):
            down = asked(command, url, *arguments)
            assert isinstance(down.exception, ArchiveError) and str(down.exception).startswith(f"{url}: cannot list its objects: no answer from ")
            assert SECRET not in str(down.exception)


@pytest.mark.parametrize("folder", ["raw", "processed"])
def test_a_folder_of_the_archive_is_not_taken_for_an_archive(folder: str, tmp_path: Path) -> None:
    _archive(tmp_path)
    with pytest.raises(ArchiveError) as raised:
        _run(tmp_path / folder, "SELECT count(*) FROM ticks")
    assert str(raised.value) == f"{tmp_path}/{folder} is the folder {folder} of an archive: name the archive itself, {tmp_path}"
    _archive(tmp_path / "other" / folder)
    assert json.loads(_run(tmp_path / "other" / folder, "--json", "SELECT count(*) AS n FROM raw").stdout) == [{"n": 3}]


def test_the_ending_of_the_file_selects_the_format_or_is_refused(tmp_path: Path) -> None:
    _archive(tmp_path / "archive")
    for name, begin in (("rows.csv", "n\n"), ("rows.txt", "n\n-\n"), ("rows", "n\n-\n")):
        assert _run(tmp_path / "archive", "--output", str(tmp_path / name), "SELECT count(*) AS n FROM raw").exit_code == 0
        assert (tmp_path / name).read_text().startswith(begin)
    refused = _run(tmp_path / "archive", "--output", str(tmp_path / "rows.xlsx"), "SELECT 1")
    assert refused.exit_code == 2 and "no format is known by the ending .xlsx" in refused.stderr and not (tmp_path / "rows.xlsx").exists()
    assert _run(tmp_path / "archive", "--format", "csv", "--output", str(tmp_path / "rows.tab"), "SELECT 1 AS one").exit_code == 0


def test_a_date_without_quotes_is_explained(tmp_path: Path) -> None:
    _archive(tmp_path)
    for sql in ("SELECT * FROM ticks WHERE date = 2025-10-09", "SELECT * FROM ticks WHERE date > 2025-10-09"):
        with pytest.raises(SqlError, match="write a date as DATE '2025-10-09', in quotes"):
            _run(tmp_path, sql)


def test_tables_take_the_view_also_after_other_options(tmp_path: Path) -> None:
    described = json.loads(_run(tmp_path, "--tables", "--json", "symbols").stdout)
    assert [view["view"] for view in described] == ["symbols"]
    assert "there is no view 'SELECT 1'" in _run(tmp_path, "--tables", "--json", "SELECT 1").stderr
    assert "takes no SQL" in _run(tmp_path, "--tables", "ticks", "SELECT 1").stderr
