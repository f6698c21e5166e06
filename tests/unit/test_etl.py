"""`stockstream etl` and the Glue job: the batch path gives what a worker gives."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import cramjam
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from stockstream.commands import etl, query
from stockstream.errors import ArchiveError, SettingsError, StockstreamError
from stockstream.etl.outputs import DateRecord, Target
from stockstream.sinks.archive.raw_objects import CleanSettings
from stockstream.sinks.stores import FileStore, Store, open_store
from stockstream.transforms.batch import RawRecord, run
from stockstream.transforms.timing import Lateness
from tests.archives import SETTINGS, archive, day
from tests.standins.s3 import s3_server

DAY_MS = 86_400_000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def log() -> list[RawRecord]:
    """Three days of half an hour each, in one log of one partition. The second begins with ticks of the first."""
    some = day(seconds=1_800, symbols=3)
    records: list[RawRecord] = []
    for number in range(3):
        for record in some:
            value = json.loads(record.value or b"")
            name = "event_time" if "event_time" in value else "punctuate"
            value[name] += number * DAY_MS // (1 if name == "event_time" else 1000)
            records.append(RawRecord(len(records), record.timestamp + number * DAY_MS, json.dumps(value).encode()))
    return records


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(etl.command, [str(one) for one in arguments], standalone_mode=False, catch_exceptions=True)


def ran(source: object, target: object, begin: str = "2023-11-14", end: str = "2023-11-16", *more: str) -> dict[str, Any]:
    result = asked("--from", f"{source}", "--to", f"{target}", "--date", begin, "--to-date", end, "--json", *more)
    if result.exception:
        raise result.exception
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def stored(store: Store, area: str) -> list[dict[str, Any]]:
    """All rows of an area, with their objects' folders, in the order of the log."""
    rows = []
    for name in store.list(f"processed/{area}/"):
        folder = name.split("/", 2)[2].rpartition("/")[0]
        rows += [row | {"folder": folder} for row in pq.read_table(pa.BufferReader(store.read(name))).to_pylist()]
    place = ("offset", "index", "symbol", "second")
    return sorted(rows, key=lambda row: [str(row["minute"]), row["symbol"], row["record_offset"]] if "minute" in row else [row.get(key, 0) for key in place])


def expected(records: Sequence[RawRecord]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Accepted ticks and rows of windows of the whole log."""
    results = run(records, partition=0, partitions=1, lateness_ms=Lateness.parse(SETTINGS.lateness_ms), revise_s=30)
    ticks = [row for frame in results.clean for row in frame.rows.to_pylist()]
    rows = sorted(results.rows().to_pylist(), key=lambda row: (row["offset"], row["symbol"], row["second"]))
    return sorted(ticks, key=lambda row: (row["offset"], row["index"])), rows


def test_an_archive_gives_the_rows_that_its_worker_has_written(log: list[RawRecord], tmp_path: Path) -> None:
    live = FileStore(tmp_path / "live")
    archive(live, log, length=700)
    summary = ran(tmp_path / "live/raw", tmp_path / "batch/processed")
    made = FileStore(tmp_path / "batch")
    assert stored(made, "ticks") == stored(live, "ticks")
    ticks, windows = expected(log)
    assert (summary["records"], summary["accepted"], summary["rows"]["ticks"]) == (len(log), len(ticks), len(ticks))
    assert summary["rows"]["windows"] == len(windows)
    rows = stored(made, "windows")
    assert [[row[name] for name in windows[0]] for row in rows] == [list(row.values()) for row in windows]
    assert {row["folder"] for row in rows} == {f"date=2023-11-1{number}/hour=22" for number in (4, 5, 6)}
    assert any(row["mean_5m"] for row in rows)
    bars = "SELECT symbol, minute, open, high, low, close, volume, ticks FROM bars_1m ORDER BY symbol, minute"
    answers = [CliRunner().invoke(query.command, ["--archive", str(tmp_path / which), "--json", bars], standalone_mode=False) for which in ("live", "batch")]
    assert answers[0].stdout == answers[1].stdout and json.loads(answers[0].stdout)


@pytest.mark.parametrize("history", ["1", "all"])
@pytest.mark.slow
def test_dates_one_by_one_give_the_same_as_all_at_once(log: list[RawRecord], tmp_path: Path, history: str) -> None:
    archive(FileStore(tmp_path / "live"), log, length=700)
    ran(tmp_path / "live/raw", tmp_path / "whole/processed")
    for number in (6, 4, 5):                                             # in any order
        ran(tmp_path / "live/raw", tmp_path / "single/processed", f"2023-11-1{number}", f"2023-11-1{number}", "--history", history)
    whole, single = FileStore(tmp_path / "whole"), FileStore(tmp_path / "single")
    for area in ("ticks", "bars_1m", "windows"):
        assert stored(single, area) == stored(whole, area), area


def test_the_history_has_the_state_that_a_date_begins_with(log: list[RawRecord], tmp_path: Path) -> None:
    """Ticks of the evening before, which come again after midnight: only the history shows that they are late."""
    again = [RawRecord(len(log) + number, log[-1].timestamp + 2 * 3_600_000, record.value) for number, record in enumerate(log[-400:-200])]
    archive(FileStore(tmp_path / "live"), [*log, *again], length=700)
    with_history = ran(tmp_path / "live/raw", tmp_path / "a/processed", "2023-11-17", "2023-11-17")
    without = ran(tmp_path / "live/raw", tmp_path / "b/processed", "2023-11-17", "2023-11-17", "--history", "0")
    assert (with_history["history_from"], without["history_from"]) == ("2023-11-16", "")
    assert with_history["records"] == without["records"] == 200 and with_history["accepted"] < without["accepted"], (with_history, without)


def test_a_second_run_changes_nothing_and_a_longer_log_replaces(log: list[RawRecord], tmp_path: Path) -> None:
    short = log[: len(log) - 500]
    archive(FileStore(tmp_path / "live"), short, length=700)
    made = FileStore(tmp_path / "batch")
    first = ran(tmp_path / "live/raw", tmp_path / "batch/processed")
    assert set(first["objects"]) == {"new"}
    before = {name: (made.read(name), (made.root / name).stat().st_mtime_ns) for name in made.list("")}
    again = ran(tmp_path / "live/raw", tmp_path / "batch/processed")
    assert again["objects"] == {"unchanged": first["objects"]["new"]}
    assert {name: (made.read(name), (made.root / name).stat().st_mtime_ns) for name in made.list("")} == before
    archive(FileStore(tmp_path / "longer"), log, length=900)
    later = ran(tmp_path / "longer/raw", tmp_path / "batch/processed")
    assert later["objects"]["replaced"] and later["accepted"] > first["accepted"]
    ran(tmp_path / "longer/raw", tmp_path / "fresh/processed")
    fresh = FileStore(tmp_path / "fresh")
    assert {name: made.read(name) for name in made.list("")} == {name: fresh.read(name) for name in fresh.list("")}


def test_what_a_shorter_run_no_longer_makes_is_deleted(log: list[RawRecord], tmp_path: Path) -> None:
    archive(FileStore(tmp_path / "long"), log[:3_000], length=700)
    archive(FileStore(tmp_path / "short"), log[:10], length=700)
    archive(FileStore(tmp_path / "late"), [replace_offset(record, 5_000) for record in log[:10]], length=700)
    ran(tmp_path / "long/raw", tmp_path / "batch/processed", "2023-11-14", "2023-11-14")
    summary = ran(tmp_path / "late/raw", tmp_path / "batch/processed", "2023-11-14", "2023-11-14")
    assert summary["objects"].get("deleted")
    ran(tmp_path / "late/raw", tmp_path / "fresh/processed", "2023-11-14", "2023-11-14")
    assert list(FileStore(tmp_path / "batch").list("")) == list(FileStore(tmp_path / "fresh").list(""))


def test_what_a_killed_run_wrote_with_other_settings_is_deleted(log: list[RawRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(FileStore(tmp_path / "live"), log, length=700)
    archive(FileStore(tmp_path / "other"), [replace_offset(record, 5) for record in log], length=700)    # its objects have other names
    made, end = FileStore(tmp_path / "batch"), Target.end

    def killed(self: Target, record: DateRecord, before: DateRecord | None) -> int:
        if record.date == "2023-11-15":
            raise KeyboardInterrupt
        return end(self, record, before)

    ran(tmp_path / "live/raw", tmp_path / "fresh/processed")
    for recorded in (False, True):                                       # before the first complete run, and after one
        with monkeypatch.context() as patch:
            patch.setattr(Target, "end", killed)
            assert isinstance(asked("--from", f"{tmp_path}/other/raw", "--to", f"{made.root}/processed", "--date", "2023-11-15").exception, BaseException)
        ran(tmp_path / "live/raw", tmp_path / "batch/processed")
        fresh = FileStore(tmp_path / "fresh")
        assert {name: made.read(name) for name in made.list("")} == {name: fresh.read(name) for name in fresh.list("")}, recorded


class Killed(Exception):
    pass


def killed(*_: object) -> Any:
    raise Killed


@pytest.mark.parametrize("at", ["end", "_create"])
@pytest.mark.parametrize("change", ["settings", "input", "nothing"])
@pytest.mark.slow
def test_what_a_killed_run_left_does_not_count_after_the_next(log: list[RawRecord], tmp_path: Path, at: str, change: str) -> None:
    """Killed before its record of the date, or (at `_create`) while it replaces the record of an earlier run."""
    archive(FileStore(tmp_path / "before"), log[:100], length=50)
    archive(FileStore(tmp_path / "live"), log[:3_000], length=700)
    if change == "settings":
        archive(FileStore(tmp_path / "next"), log[:3_000], length=700, settings=replace_settings(lateness_ms="2500"))
    elif change == "input":
        archive(FileStore(tmp_path / "next"), [replace_offset(record, 5_000) for record in log[:10]], length=700)
    else:
        archive(FileStore(tmp_path / "next"), log[:3_000], length=700)
    days = "2023-11-14", "2023-11-14"
    if at == "_create":
        ran(tmp_path / "before/raw", tmp_path / "batch/processed", *days)
    create = Target._create
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, at, killed if at == "end" else lambda self, name, data: killed() if is_record(name) else create(self, name, data))
        with pytest.raises(Killed):
            ran(tmp_path / "live/raw", tmp_path / "batch/processed", *days)
    ran(tmp_path / "next/raw", tmp_path / "batch/processed", *days)
    ran(tmp_path / "next/raw", tmp_path / "fresh/processed", *days)
    assert contents(tmp_path / "batch") == contents(tmp_path / "fresh")


def is_record(name: str) -> bool:
    return name.startswith("etl/") and "/unfinished/" not in name


def contents(root: Path) -> dict[str, bytes]:
    store = FileStore(root)
    return {name: store.read(name) for name in store.list("")}


def test_what_a_killed_run_left_of_another_log_does_not_count_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "raw/date=2023-10-10/hour=12/x.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{json.dumps({'partition': 0, 'offset': n, 'timestamp': tick(n)['event_time'], 'value': tick(n)})}\n" for n in range(40)))
    monkeypatch.setenv("STOCKSTREAM_PARTITIONS", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, "end", killed)
        with pytest.raises(Killed):
            ran(tmp_path / "raw", tmp_path / "batch/processed", "2023-10-10", "2023-10-10")
    assert len(stored(FileStore(tmp_path / "batch"), "ticks")) == 40
    path.write_text("".join(f"{json.dumps(tick(number))}\n" for number in range(40)))
    ran(tmp_path / "raw", tmp_path / "batch/processed", "2023-10-10", "2023-10-10")
    assert len(stored(FileStore(tmp_path / "batch"), "ticks")) == 40
    assert not list(FileStore(tmp_path / "batch").list("etl/date=2023-10-10/unfinished/"))


@pytest.mark.parametrize("recorded", [False, True])
def test_two_runs_at_once_are_an_error_that_a_repetition_mends(log: list[RawRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    archive(FileStore(tmp_path / "first"), log[:3_000], length=700)
    archive(FileStore(tmp_path / "second"), log[:1_000], length=700)
    days = "2023-11-14", "2023-11-14"
    if recorded:
        ran(tmp_path / "first/raw", tmp_path / "batch/processed", *days)
    end = Target.end

    def beside(*arguments: Any) -> int:
        monkeypatch.setattr(Target, "end", end)
        ran(tmp_path / "second/raw", tmp_path / "batch/processed", *days)
        return end(*arguments)

    monkeypatch.setattr(Target, "end", beside)
    with pytest.raises(ArchiveError, match="another run has processed 2023-11-14 at the same time"):
        ran(tmp_path / "first/raw", tmp_path / "batch/processed", *days)
    ran(tmp_path / "first/raw", tmp_path / "batch/processed", *days)
    ran(tmp_path / "first/raw", tmp_path / "fresh/processed", *days)
    assert contents(tmp_path / "batch") == contents(tmp_path / "fresh")


def test_a_worker_that_begins_to_archive_beside_it_ends_it(log: list[RawRecord], tmp_path: Path) -> None:
    target = Target(FileStore(tmp_path / "batch"))
    archive(FileStore(tmp_path / "batch"), log[:100])
    with pytest.raises(ArchiveError, match="is the archive of a worker"):
        target.before("log", 0, "2023-11-14")


def replace_offset(record: RawRecord, by: int) -> RawRecord:
    return record._replace(offset=record.offset + by)


def tick(number: int, **fields: Any) -> dict[str, Any]:
    at = 1_696_939_200_000 + number * 1_000                              # 2023-10-10 12:00 UTC
    return {"symbol": "AAPL", "event_time": at, "price": 100.0 + number % 7, "size": 10, "source": "mine", "seq": number} | fields


@pytest.mark.parametrize("form", ["tick", "record"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_json_lines_of_another_system(tmp_path: Path, form: str, packed: str) -> None:
    """The owner's layout, raw/date=2023-10-10/hour=12/: one tick a line, or one record of Kafka's."""
    ticks: list[Any] = [tick(number) for number in range(400)]
    ticks[5] = tick(5, price=None, size=0, bid=99.0, ask=101.0)                   # a quote: nulls are no prices
    ticks[6] = tick(6, price=-1.0)
    ticks[7] = tick(7, symbol=None)
    if form == "record":
        ticks = [{"timestamp": (one["event_time"] or 0) + 5, "key": "AAPL", "value": json.dumps(one)} for one in ticks]
    text = [json.dumps(one) for one in ticks]
    if form == "tick":
        text[8] = "no JSON"
    for hour, some in ((12, text[:200]), (13, text[200:])):
        data = "".join(f"{line}\n" for line in some).encode()
        path = tmp_path / f"raw/date=2023-10-10/hour={hour}/part-0.json{packed}"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(data) if packed == ".gz" else bytes(cramjam.zstd.compress(data)) if packed == ".zst" else data)
    (tmp_path / "raw/date=2023-10-10/hour=12/_SUCCESS").touch()
    summary = ran(tmp_path / "raw", tmp_path / "processed", "2023-10-10", "2023-10-10")
    bad = {"invalid_json": 1} if form == "tick" else {}
    assert summary["rejected"] == {"out_of_range": 1, "missing_field": 1} | bad
    assert summary["accepted"] == 398 - len(bad) and summary["ignored"] == 1
    made = FileStore(tmp_path)
    rows = stored(made, "windows")
    assert len(rows) == summary["rows"]["windows"] > 390 and rows[-1]["mean_5m"] == pytest.approx(103, abs=0.1)
    assert {row["folder"] for row in stored(made, "ticks")} == {"date=2023-10-10/hour=12"}, "an event's own hour, not its file's"
    quote = next(row for row in stored(made, "ticks") if row["price"] is None)
    assert (quote["bid"], quote["ask"], quote["size"]) == (99.0, 101.0, 0)
    (rejected,) = [pq.read_table(pa.BufferReader(made.read(name))).to_pylist() for name in made.list("rejected/")]
    assert sorted(row["reason"] for row in rejected) == sorted({"out_of_range": 1, "missing_field": 1} | bad)
    again = ran(tmp_path / "raw", tmp_path / "processed", "2023-10-10", "2023-10-10")
    assert set(again["objects"]) == {"unchanged"}


def test_lines_with_partitions_and_offsets_are_several_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_PARTITIONS", "2")
    lines = [
        {"partition": number % 2, "offset": 100 + number, "timestamp": 1_696_939_200_000 + number, "value": tick(number, symbol="ABCD"[number % 4])}
        for number in range(40)
    ]
    path = tmp_path / "raw/date=2023-10-10/hour=12/x.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = ran(tmp_path / "raw", tmp_path / "processed", "2023-10-10", "2023-10-10")
    assert summary["records"] == 40 and summary["accepted"] + sum(summary["rejected"].values()) == 40
    assert set(summary["rejected"]) <= {"wrong_partition", "future"}


def test_what_stops_it(log: list[RawRecord], tmp_path: Path) -> None:
    archive(FileStore(tmp_path / "live"), log[:500])
    (tmp_path / "empty").mkdir()
    for source, target, error, text in (
        ("live/raw", "live/processed", ArchiveError, "is the archive of a worker"),
        ("nowhere/raw", "batch/processed", ArchiveError, "does not exist"),
        ("empty", "batch/processed", ArchiveError, "holds no raw records"),
    ):
        with pytest.raises(error, match=text):
            ran(tmp_path / source, tmp_path / target)
    with pytest.raises(SettingsError, match="scheme"):
        ran("ftp://x/raw", tmp_path / "batch")
    result = asked("--from", f"{tmp_path}/live/raw", "--to", f"{tmp_path}/batch/processed", "--date", "2024-01-01")
    assert result.return_value == 0 and not (tmp_path / "batch").exists()
    assert "no raw records of 2024-01-01: nothing was written; there are those of " in result.stdout
    gap = FileStore(tmp_path / "gap")
    archive(gap, log[:500], length=100)
    (gap.root / sorted(gap.list("raw/"))[1]).unlink()
    with pytest.raises(StockstreamError, match="offsets 100 to 199 are missing before it"):
        ran(tmp_path / "gap/raw", tmp_path / "batch/processed")


def test_the_settings_are_those_that_raw_objects_record(log: list[RawRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with another lateness, and other partitions, than this process has."""
    wide = replace_settings(lateness_ms="2500")
    live = FileStore(tmp_path / "live")
    archive(live, log, length=700, settings=wide)
    monkeypatch.setenv("STOCKSTREAM_LATENESS_MS", "0")
    ran(tmp_path / "live/raw", tmp_path / "batch/processed")
    assert stored(FileStore(tmp_path / "batch"), "ticks") == stored(live, "ticks")
    other = replace_settings(raw_format="polygon=1")
    archive(FileStore(tmp_path / "foreign"), log[:100], settings=other)
    with pytest.raises(ArchiveError, match="STOCKSTREAM_RAW_FORMAT means polygon=1; here it means nothing"):
        ran(tmp_path / "foreign/raw", tmp_path / "batch2/processed")


def replace_settings(**changes: Any) -> CleanSettings:
    return msgspec.structs.replace(SETTINGS, **changes)


@pytest.mark.slow
def test_the_glue_job_in_a_bucket(log: list[RawRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch) as server:
        live = open_store("s3://bucket/live")
        archive(live, log[:1_500], length=700)
        given = [
            "--JOB_NAME", "stockstream-etl", "--JOB_ID", "j_1", "--JOB_RUN_ID", "jr_1", "--job-bookmark-option", "job-bookmark-disable", "--TempDir", "s3://x/y",
            "--from", "s3://bucket/live/raw", "--to", "s3://bucket/batch/processed", "--date", "2023-11-14",
            "--setting", f"s3_endpoint={server.endpoint};lateness_ms=200",
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name not in ("STOCKSTREAM_S3_ENDPOINT", "STOCKSTREAM_ARCHIVE")}
        done = subprocess.run([sys.executable, ROOT / "scripts/glue_job.py", *given], capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("glue job stockstream-etl") and "accepted" in done.stdout
        assert stored(open_store("s3://bucket/batch"), "ticks") == stored(live, "ticks")
        failed = subprocess.run([sys.executable, ROOT / "scripts/glue_job.py", "--from", "s3://bucket/no/raw", "--to", "s3://bucket/x", *given[-4:]],
                                capture_output=True, text=True, env=environment, timeout=300)  # fmt: skip
        assert failed.returncode == 1 and "holds no raw records" in failed.stderr and "Traceback" not in failed.stderr


def test_dates_must_be_in_order(tmp_path: Path) -> None:
    result = asked("--from", f"{tmp_path}", "--to", f"{tmp_path}", "--date", "2023-11-15", "--to-date", "2023-11-14")
    assert "before --date" in str(result.exception)
    assert date(2023, 11, 14) < date(2023, 11, 15)


