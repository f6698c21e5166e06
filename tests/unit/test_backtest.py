"""`stockstream backtest`: what it reads, what it writes, and that both equal the pipeline as one function of a log."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cramjam
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stockstream import cli
from stockstream.backtest.inputs import Selection, open_raw
from stockstream.backtest.lines import line_of
from stockstream.backtest.result_files import SCHEMAS, ResultFiles
from stockstream.backtest.runner import backtest
from stockstream.errors import OutputError, StockstreamError
from stockstream.records import WINDOWS_SCHEMA, Alert, Outcome, Prediction, Rejection
from stockstream.settings import Settings
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.raw_objects import encode
from stockstream.sinks.stores import FileStore
from stockstream.transforms import batch
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.scoring.scorer import encode_outcomes, encode_predictions
from tests import backtests
from tests.fixtures.make import PARTITION, PARTITIONS, Model, log_of
from tests.logs import generated_day

AT = 1_760_000_000_000
OF_WORKERS = ("made_at", "judged_at", "latency_ms")
Json = dict[str, Any]


def tick(second: int, price: float = 10.0, **more: Any) -> Json:
    return {"symbol": "X", "event_time": AT + 1000 * second, "price": price, "size": 5, "source": "s"} | more


def lines(*values: Any, **more: Any) -> list[Json]:
    return [{"timestamp": AT + 3_600_000, "value": value} | more for value in values]


def without_times(items: list[Json]) -> list[Json]:
    return [{name: value for name, value in item.items() if name not in OF_WORKERS} for item in items]


def day_lines(partitions: int, seconds: int = 1_500) -> list[Json]:
    """A generated day as lines, in order of arrival, with the partitions and offsets of a log of `partitions`."""
    offsets = dict.fromkeys(range(partitions), 0)
    out = []
    for row in generated_day(seconds=seconds, symbols=8).to_dict("records"):
        partition = home_partition(row["symbol"], partitions)
        value = {"source": "day"} | {name: None if pd.isna(field) else field for name, field in row.items()}
        out.append({"timestamp": int(row["event_time"]) + 200, "key": row["symbol"], "value": value, "partition": partition, "offset": offsets[partition]})
        offsets[partition] += 1
    return out


@dataclass(frozen=True)
class Kept:
    """A record with its key, as the archive takes it."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes


@pytest.fixture(scope="module")
def log() -> list[RawRecord]:
    return list(log_of())


@pytest.fixture(scope="module")
def ran(log: list[RawRecord], tmp_path_factory: pytest.TempPathFactory) -> backtests.Ran:
    folder = tmp_path_factory.mktemp("results")
    written = [
        {"timestamp": record.timestamp, "partition": PARTITION, "offset": record.offset, "value": None if record.value is None else record.value.decode()}
        for record in log
    ]
    path = backtests.write(folder / "log.jsonl", written)
    return backtests.run(path, folder / "out", partitions=PARTITIONS, model=Model(), close=False)


@pytest.fixture(scope="module")
def want(log: list[RawRecord]) -> batch.Results:
    return batch.run(log, partition=PARTITION, partitions=PARTITIONS, model=Model(), chunk=50)


class TestResults:
    """Against `batch.run` over the same records, whose equality with a worker the fault suite proves."""

    def test_rows_alerts_and_rejections(self, ran: backtests.Ran, want: batch.Results) -> None:
        assert ran.tables["windows"] == want.rows().to_pylist() and len(want.windows) > 10
        no_gap = {"gap_s": None, "price_before_gap": None}               # messages leave them out
        alerts = [_plain(alert) | {"window": no_gap | alert.window} for alert in want.alerts]
        assert ran.tables["alerts"] == json.loads(json.dumps(alerts)) and alerts
        assert ran.tables["rejected"] == [_plain(rejection) for rejection in want.rejections] and want.rejections

    def test_predictions_and_outcomes(self, ran: backtests.Ran, want: batch.Results) -> None:
        predictions = [json.loads(value) for scored in want.scored for value in encode_predictions(scored, 0, {})]
        outcomes = [item for scored in want.scored for value in encode_outcomes(scored, 0) for item in json.loads(value)]
        assert without_times(ran.tables["predictions"]) == without_times(predictions) and predictions
        assert without_times(ran.tables["outcomes"]) == without_times(outcomes) and outcomes
        assert {row[name] for row in ran.tables["predictions"] for name in ("made_at", "latency_ms")} == {None}

    def test_the_summary_counts_them(self, ran: backtests.Ran, want: batch.Results) -> None:
        of, rows = ran.summary, want.rows()
        assert (of.records, of.partitions, of.logs) == (len(list(log_of())), 1, 1)
        assert of.accepted == sum(frame.rows.num_rows for frame in want.clean)
        assert of.ticks - of.accepted == len(want.rejections) == sum(of.rejected.values())
        assert of.rows == rows.num_rows and of.revised == sum(rows.column("revised").to_pylist()) > 0
        assert of.late == sum("late" in text for text in rows.column("quality").to_pylist())
        assert of.symbols == len(set(rows.column("symbol").to_pylist())) and of.seconds == len(set(rows.column("second").to_pylist()))
        assert sum(count for states in of.alerts.values() for count in states.values()) == len(want.alerts)
        assert (of.predictions, of.outcomes) == (len(ran.tables["predictions"]), len(ran.tables["outcomes"]))


def _plain(record: Any) -> Json:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_columns_are_those_of_the_messages() -> None:
    assert SCHEMAS["windows"] == WINDOWS_SCHEMA
    for name, record in (("alerts", Alert), ("predictions", Prediction), ("outcomes", Outcome), ("rejected", Rejection)):
        assert tuple(SCHEMAS[name].names) == record.__struct_fields__
    assert SCHEMAS["alerts"].field("window").type.field("volume").type == WINDOWS_SCHEMA.field("volume").type
    assert SCHEMAS["predictions"].field("horizons").type.value_type.field("p_up").type == pa.float64()


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 4])
def test_the_files_do_not_depend_on_the_chunks(partitions: int, tmp_path: Path) -> None:
    path = backtests.write(tmp_path / "log.jsonl", [*day_lines(partitions), *lines("no tick", partition=0)])
    ran = [
        backtests.run(path, tmp_path / str(chunk), chunk=chunk, model=Model(), settings=Settings(partitions=partitions)) for chunk in (5_000, 613, 41)
    ]
    assert ran[0].summary.partitions == partitions and ran[0].summary.predictions > 1_000 and ran[0].summary.outcomes > 1_000
    for other in ran[1:]:
        for name in SCHEMAS:
            assert (ran[0].folder / f"{name}.parquet").read_bytes() == (other.folder / f"{name}.parquet").read_bytes(), (name, other.folder.name)


def test_groups_of_rows_are_bounded_and_hold_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = backtests.write(tmp_path / "log.jsonl", day_lines(2))
    whole = backtests.run(path, tmp_path / "whole", settings=Settings(partitions=2), model=Model())
    for name, size in (("GROUP_ROWS", 500), ("PART_ROWS", 70), ("GROUP_BYTES", 1_000)):
        monkeypatch.setattr(f"stockstream.backtest.result_files.{name}", size)
    small = backtests.run(path, tmp_path / "small", settings=Settings(partitions=2), model=Model())
    assert small.tables == whole.tables
    assert pq.ParquetFile(small.folder / "windows.parquet").metadata.row_group(0).num_rows == 500


class TestInputs:
    def test_compressed_lines_are_read_likewise(self, tmp_path: Path) -> None:
        path = backtests.write(tmp_path / "log.jsonl", day_lines(1))
        want = backtests.run(path, tmp_path / "plain").tables
        (tmp_path / "log.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        (tmp_path / "log.jsonl.zst").write_bytes(bytes(cramjam.zstd.compress(path.read_bytes())))
        assert backtests.run(tmp_path / "log.jsonl.gz", tmp_path / "gz").tables == want
        assert backtests.run(tmp_path / "log.jsonl.zst", tmp_path / "zst").tables == want

    def test_a_value_is_kept_as_written(self) -> None:
        assert line_of(b'{"timestamp": -1, "value": {"a": 1.50,  "b": 12345678901234567890}}').value == b'{"a": 1.50,  "b": 12345678901234567890}'
        assert line_of(b'{"timestamp": 0, "value": "{\\"a\\": 1}", "key": "K"}') == line_of(b'{"timestamp": 0, "value": {"a": 1}, "key_base64": "Sw=="}')
        assert line_of(b'{"timestamp": 0, "value": null}').value is None
        assert line_of(b'{"timestamp": 0, "value_base64": "/w=="}').value == b"\xff"

    def test_record_times_of_minus_1_are_passed_on(self, tmp_path: Path) -> None:
        path = backtests.write(tmp_path / "log.jsonl", [{"timestamp": -1, "value": "nothing"}, *lines(tick(0))])
        assert backtests.run(path, tmp_path / "out").summary.records == 2

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("{", "truncated"), ('{"value": 1}', "timestamp"), ('{"timestamp": 1}', "no value"), ('{"timestamp": "1", "value": 1}', "Expected `int`"),
            ('{"timestamp": 1, "value": NaN}', "malformed"), ('{"timestamp": -2, "value": 1}', ">= -1"), ('{"timestamp": 1, "value": "\\ud800"}', "JSON"),
            ('{"timestamp": 1, "value_base64": "!"}', "base64"), ('{"timestamp": 1, "value": 1, "partition": 0}', "unlike the first line"),
            ('{"timestamp": 1, "value": ' + "[" * 5_000, "nested"), ('{"timestamp": 1, "value": 1, "offset": 1}', "where at least 2 comes next"),
        ],
    )  # fmt: skip
    def test_a_bad_line_is_named_and_nothing_is_left(self, line: str, why: str, tmp_path: Path) -> None:
        path = backtests.write(tmp_path / "log.jsonl", [*lines(tick(0)), "", *lines(tick(1)), line, *lines(tick(2))])
        with pytest.raises(StockstreamError, match=r"log\.jsonl: line 4: ") as caught:
            backtests.run(path, tmp_path / "out")
        assert why.lower() in str(caught.value).lower()
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_torn_file_is_an_error(self, tmp_path: Path) -> None:
        packed = gzip.compress(backtests.write(tmp_path / "log.jsonl", lines(*map(tick, range(50)))).read_bytes())
        (tmp_path / "torn.jsonl.gz").write_bytes(packed[: len(packed) // 2])
        with pytest.raises(StockstreamError, match="cannot be read after line"):
            backtests.run(tmp_path / "torn.jsonl.gz", tmp_path / "out")

    def test_a_partition_beyond_the_logs_is_an_error(self, tmp_path: Path) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0), partition=8))
        with pytest.raises(StockstreamError, match="--partitions"):
            backtests.run(path, tmp_path / "out", settings=Settings(partitions=8))

    def test_records_are_spread_as_producers_do(self, tmp_path: Path) -> None:
        rows = day_lines(4)
        whole = backtests.run(backtests.write(tmp_path / "whole.jsonl", rows), tmp_path / "whole", settings=Settings(partitions=4))
        for row in rows:
            del row["partition"], row["offset"]
        for row in rows[::2]:
            del row["key"]
        spread = backtests.run(backtests.write(tmp_path / "spread.jsonl", rows), tmp_path / "spread", partitions=4)
        assert spread.tables == whole.tables and spread.summary.rejected == whole.summary.rejected == {}

    def test_one_partition_rejects_nothing_as_wrong_partition(self, tmp_path: Path) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(*(tick(0, symbol=f"S{number}") for number in range(20))))
        assert backtests.run(path, tmp_path / "out").summary.accepted == 20

    def test_an_open_second_is_closed_at_the_end_or_left(self, tmp_path: Path) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0), tick(1), tick(1, symbol="Y", source="t")))
        closed, left = backtests.run(path, tmp_path / "closed"), backtests.run(path, tmp_path / "left", close=False)
        assert [(row["symbol"], row["second"] - AT // 1000) for row in closed.tables["windows"]] == [("X", 0), ("X", 1), ("Y", 1)]
        assert closed.summary.punctuations == 2 and left.summary.punctuations == 0
        assert [(row["symbol"], row["second"] - AT // 1000) for row in left.tables["windows"]] == [("X", 0)][: len(left.tables["windows"])]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Json]]:
    """Two logs, of which one has two partitions; raw objects of some records each."""
    root = tmp_path_factory.mktemp("archive") / "my data"
    rows = day_lines(2)
    store = FileStore(root)
    for log, partition in (("a", 0), ("b", 0), ("b", 1)):
        mine = [row for row in rows if row["partition"] == partition]
        chain = Chain(store, log, partition)
        chain.open()
        for start in range(0, len(mine), 400):
            some = [Kept(row["offset"], row["timestamp"], row["key"].encode(), json.dumps(row["value"]).encode()) for row in mine[start : start + 400]]
            for piece in encode(partition, some, chain.end + 1):
                chain.append([piece])
    return root, rows


class TestArchive:
    def test_a_log_of_it_equals_its_lines(self, archive: tuple[Path, list[Json]], tmp_path: Path) -> None:
        root, rows = archive
        ordered = [row for partition in (0, 1) for row in rows if row["partition"] == partition]
        want = backtests.run(backtests.write(tmp_path / "log.jsonl", ordered), tmp_path / "want", partitions=2)
        got = in_process(root.as_uri(), tmp_path / "got", "--log", "b", "--partitions", "2")
        assert got == want.tables
        assert in_process(str(root / "raw"), tmp_path / "raw", "--log", "b", "--partitions", "2") == want.tables

    def test_all_logs_follow_each_other(self, archive: tuple[Path, list[Json]], tmp_path: Path) -> None:
        got = backtests.run(archive[0], tmp_path / "out", settings=Settings(partitions=2))
        assert (got.summary.logs, got.summary.partitions) == (2, 3)
        assert got.summary.records == sum(1 + (row["partition"] == 0) for row in archive[1])

    def test_one_object_and_a_range(self, archive: tuple[Path, list[Json]], tmp_path: Path) -> None:
        root, rows = archive
        first = min(root.glob("raw/**/b-00001-*"), key=lambda path: path.name)
        assert backtests.run(first, tmp_path / "one", settings=Settings(partitions=2)).summary.records == 400
        times = sorted(row["timestamp"] for row in rows)
        begin, end = times[len(times) // 3] // 1000, times[len(times) // 2] // 1000
        texts = [pd.Timestamp(second, unit="s", tz="UTC").isoformat() for second in (begin, end)]
        summary = json.loads(printed(root, tmp_path / "some", "--log", "b", "--partitions", "2", "--from", texts[0], "--to", texts[1], "--json"))
        assert summary["records"] == sum(begin * 1000 <= time < end * 1000 for time in times)

    def test_a_missing_object_is_an_error(self, archive: tuple[Path, list[Json]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root, _ = archive
        second = sorted(root.glob("raw/**/b-00000-*"), key=lambda path: path.name)[1]
        aside = second.rename(tmp_path / "aside")
        try:
            assert cli.run(["backtest", str(root), "--out", str(tmp_path / "out"), "--partitions", "2"]) == 1
        finally:
            aside.rename(second)
        assert "where 400 comes next" in capsys.readouterr().err

    @pytest.mark.parametrize("folder", ["", "raw"])
    def test_a_folder_without_objects_is_an_error(self, folder: str, tmp_path: Path) -> None:
        (tmp_path / "empty" / folder).mkdir(parents=True)
        with pytest.raises(StockstreamError, match="holds no raw objects"):
            backtests.run(tmp_path / "empty", tmp_path / "out")


def printed(source: Path | str, out: Path, *more: str) -> str:
    """What a successful command prints on stdout."""
    done = CliRunner().invoke(cli.group, ["backtest", str(source), "--out", str(out), *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def in_process(source: str, out: Path, *more: str) -> dict[str, list[Json]]:
    printed(source, out, *more)
    return backtests.read(out)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _no_models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOCKSTREAM_MODELS", str(tmp_path / "models"))

    def test_trades_come_out_as_a_replay_publishes_them(self, tmp_path: Path) -> None:
        day = generated_day(seconds=1_500)
        day.assign(event_time=pd.to_datetime(day.event_time, unit="ms", utc=True)).to_csv(tmp_path / "day.csv", index=False)
        got = in_process(str(tmp_path / "day.csv"), tmp_path / "out", "--partitions", "3")
        rows = []
        for row in day.to_dict("records"):
            value = {"source": "replay.day"} | {name: None if pd.isna(field) else field for name, field in row.items()}
            rows.append({"timestamp": row["event_time"], "key": row["symbol"], "value": value})
        want = backtests.run(backtests.write(tmp_path / "day.jsonl", rows), tmp_path / "want", partitions=3)
        assert got == want.tables and len(got["windows"]) > 100

    def test_it_says_that_there_is_no_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0), tick(1)))
        assert cli.run(["backtest", str(path), "--out", str(tmp_path / "out")]) == 0
        out, err = capsys.readouterr()
        assert "no predictions: there is no model xgboost" in err and "for there is no model" in out
        table = pq.read_table(tmp_path / "out" / "predictions.parquet")
        assert table.num_rows == 0 and table.schema == SCHEMAS["predictions"]

    def test_a_champion_that_cannot_be_loaded_is_an_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "models" / "xgboost").mkdir(parents=True)
        (tmp_path / "models" / "xgboost" / "champion").write_text("20260101T000000.000Z-00000000")
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0)))
        assert cli.run(["backtest", str(path), "--out", str(tmp_path / "out")]) == 1
        assert "cannot be loaded" in capsys.readouterr().err

    def test_results_that_are_there_stay_unless_forced(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0), tick(1)))
        out = tmp_path / "new" / "out"
        arguments = ["backtest", str(path), "--out", str(out)]
        assert cli.run(arguments) == 0
        before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
        assert sorted(before) == sorted(f"{name}.parquet" for name in SCHEMAS)
        assert cli.run(arguments) == 1 and "--force" in capsys.readouterr().err
        assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
        assert cli.run([*arguments, "--force"]) == 0
        assert sorted(file.name for file in out.iterdir()) == sorted(before)

    def test_the_summary_is_json_for_programs(self, tmp_path: Path) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0), tick(1, price=-1), tick(2)))
        summary = json.loads(printed(path, tmp_path / "out", "--json"))
        assert (summary["records"], summary["accepted"], summary["rejected"]) == (3, 2, {"out_of_range": 1})
        assert (summary["first_event_time"], summary["last_event_time"]) == (AT, AT + 2000)
        assert summary["out"] == str(tmp_path / "out") and "no model" in summary["model_note"]

    def test_nothing_that_is_accepted_is_one_line_and_status_1(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0, price=-1), tick(1, price=0), {"foreign": 1}))
        out = tmp_path / "out"
        assert cli.run(["backtest", str(path), "--out", str(out)]) == 1
        printed, errors = capsys.readouterr()
        assert "ticks        3: 0 accepted, 3 rejected" in printed
        first, *_ = rejected = backtests.read(out)["rejected"]
        assert errors.splitlines()[-1] == f"stockstream: {path}: all 3 ticks were rejected, the first by {first['reason']}: {first['detail']}"
        assert first["reason"] == "out_of_range" and len(rejected) == 3
        assert cli.run(["backtest", str(path), "--out", str(out), "--force", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["first_rejection"] == f"out_of_range: {first['detail']}"

    @pytest.mark.parametrize(
        ("name", "content", "why"),
        [("none.jsonl", None, "no such file or folder"), ("none.csv", None, "no such file"), ("empty.jsonl", "", "there is no record"),
         ("empty.csv", "", "is empty"), ("blank.jsonl", "\n\n", "there is no record")],
    )  # fmt: skip
    def test_no_input_is_one_line_and_status_1(self, name: str, content: str | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        if content is not None:
            (tmp_path / name).write_text(content)
        assert cli.run(["backtest", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert why in last and name in last
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("options", [["--bars"], ["--symbols", "X"], ["--limit", "1"], ["--source", "s"]])
    def test_options_of_trades_are_refused_for_raw_records(self, options: list[str], tmp_path: Path) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0)))
        assert cli.run(["backtest", str(path), "--out", str(tmp_path / "out"), *options]) == 2

    def test_a_file_in_place_of_the_folder_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = backtests.write(tmp_path / "log.jsonl", lines(tick(0)))
        assert cli.run(["backtest", str(path), "--out", str(path)]) == 1
        assert "cannot be written: a file is in its place" in capsys.readouterr().err


def test_a_run_that_fails_keeps_the_results_before(tmp_path: Path) -> None:
    good = backtests.write(tmp_path / "good.jsonl", lines(tick(0), tick(1)))
    before = backtests.run(good, tmp_path / "out")
    bad = backtests.write(tmp_path / "bad.jsonl", [*lines(tick(0)), "bad"])
    with pytest.raises(StockstreamError):
        backtests.run(bad, tmp_path / "out", force=True)
    assert backtests.read(tmp_path / "out") == before.tables
    with pytest.raises(OutputError):
        backtests.run(good, tmp_path / "out")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    path = backtests.write(tmp_path / "log.jsonl", lines(tick(0), tick(1)))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        backtests.run(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_adds_up_to_the_size(tmp_path: Path) -> None:
    path = backtests.write(tmp_path / "log.jsonl", day_lines(1))
    done: list[int] = []
    source = open_raw(path, Selection())
    with ResultFiles(tmp_path / "out") as files:
        backtest(source, files, partitions=1, lateness_ms=200, revise_s=30, advance=done.append)
    assert sum(done) == source.size == path.stat().st_size
