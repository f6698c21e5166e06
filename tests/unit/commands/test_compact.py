"""`stockstream compact`, and the compaction of a worker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from stockstream.cli import run
from stockstream.sinks.archive import compactor
from stockstream.sinks.archive.compactions import list_compactions
from stockstream.sinks.archive.compactor import Compactor, compact_command
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.raw_objects import Tail
from stockstream.sinks.archive.topics.positions import Position, State, create_position
from stockstream.sinks.stores import FileStore, open_store
from tests.patience import PATIENCE_S
from tests.standins.s3 import s3_server
from tests.unit.sinks.test_compacting import LOG, put, read, small


def filled(root: Path, count: int = 6) -> FileStore:
    store = FileStore(root)
    put(store, *(small(area, first, first + 9, 10) for area in ("ticks", "bars_1m") for first in range(0, 10 * count, 10)))
    return store


def test_a_line_for_each_folder_a_summary_and_then_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path)
    assert run(["compact", "--archive", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (
        "nothing to compact yet: 12 objects of hours and days that are not over, or of the last 10 minutes (--all compacts them too)\n"
    )
    assert run(["compact", "--archive", str(tmp_path), "--date", "2025-10-08"]) == 0 and capsys.readouterr().out == "nothing to compact\n"
    assert run(["compact", "--archive", str(tmp_path), "--all", "--dry-run"]) == 0
    assert "12 objects (71.2 KB) of 2 folders would be compacted" in capsys.readouterr().out and not list_compactions(FileStore(tmp_path))
    assert run(["compact", "--archive", str(tmp_path), "--all", "--date", "2025-10-08"]) == 0 and "nothing to compact" in capsys.readouterr().out
    assert run(["compact", "--archive", str(tmp_path), "--all", "--date", "2025-10-09"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bars_1m 2025-10-09: 6 objects, ") and lines[1].startswith("ticks 2025-10-09 hour 08: 6 objects, ")
    assert lines[1].endswith(" KB, 60 rows") and lines[2].startswith("12 objects (71.2 KB) became 2 (") and lines[2].endswith("; 12 deleted")
    assert run(["compact", "--archive", str(tmp_path), "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"archive": f"file://{tmp_path}", "dry_run": False, "folders": [], "faults": []}


def test_positions_are_packed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FileStore(tmp_path)
    for number in range(101):
        create_position(store, Position("alerts", 0, 0, number, number, number, Tail(number, 1), {}, State(), State(), 1))
    assert run(["compact", "--archive", str(tmp_path)]) == 0 and "nothing to compact" in capsys.readouterr().out
    assert run(["compact", "--archive", str(tmp_path), "--all", "--date", "2025-10-09"]) == 0 and "nothing to compact" in capsys.readouterr().out
    assert run(["compact", "--archive", str(tmp_path), "--all"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "positions alerts-00000/0000: 100 objects, 32.1 KB -> 1 object, 1.4 KB"
    assert len(list(store.list("positions/"))) == 2


def test_wrong_places_and_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compact", "--archive", str(tmp_path / "none")]) == 1 and "does not exist" in capsys.readouterr().err
    assert run(["compact", "--archive", str(tmp_path), "--date", "2025-10-09", "--to", "2025-10-10"]) == 2
    assert run(["compact", "--archive", "none"]) == 1 and "there is no archive" in capsys.readouterr().err


def test_an_object_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = filled(tmp_path)
    name = next(store.list("processed/ticks/"))
    (tmp_path / name).write_bytes(b"PAR1")
    assert run(["compact", "--archive", str(tmp_path), "--all"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"FAULT {name}") and "11 objects" in out


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL after ever longer times; every row counts once after each."""
    store = filled(tmp_path, 30)
    rows = Counter((LOG, 0, offset) for offset in range(300))
    after, number = 0.7, 300
    while True:
        process = subprocess.Popen([sys.executable, "-m", "stockstream.cli", "compact", "--archive", str(tmp_path), "--all"], stdout=subprocess.DEVNULL)
        try:
            ended = process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            ended = process.wait()
        assert Counter(read(store, "ticks")) == rows
        if ended == 0:
            break
        put(store, small("ticks", number, number + 9, 10))
        rows.update((LOG, 0, offset) for offset in range(number, number + 10))
        after, number = after * 1.4, number + 10
        assert after < 10 * PATIENCE_S
    assert len([name for name in store.list("processed/ticks/") if parse_name(name)]) < 2


def test_in_a_bucket_with_and_without_the_permission_to_delete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with s3_server(monkeypatch):
        store = open_store("s3://bucket/archive")
        names = put(store, *(small("windows", first, first + 9, 10) for first in range(0, 60, 10)))
        rows = Counter((LOG, 0, offset) for offset in range(60))
        with monkeypatch.context() as patch:
            patch.setattr("stockstream.sinks.s3.S3Store.delete", lambda self, name: self._call("delete", name, _denied))
            assert run(["compact", "--archive", "s3://bucket/archive", "--all"]) == 1
        out, err = capsys.readouterr()
        assert "6 objects" in out and "0 deleted" in out and "access is denied" in err and "6 replaced objects left, which no longer count" in err
        assert Counter(read(store, "windows")) == rows and set(names) < set(store.list("processed/"))
        assert run(["compact", "--archive", "s3://bucket/archive", "--all"]) == 0 and "6 replaced objects deleted" in capsys.readouterr().out
        assert Counter(read(store, "windows")) == rows and len(list(store.list(""))) == 2


def _denied(*_: object) -> None:
    from botocore.exceptions import ClientError

    raise ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "DeleteObject")


def _until_it_ended(one: Compactor) -> None:
    deadline = time.monotonic() + 10 * PATIENCE_S
    while one.report()["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
        one.step()


def test_the_worker_with_partition_0_compacts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    filled(tmp_path)
    one = Compactor([*compact_command(str(tmp_path)), "--all"], clock=lambda: now[0])
    one.own([1, 2])
    now[0] = compactor.FIRST_S
    one.step()
    assert one.report()["state"] == "elsewhere"
    one.own([0, 1])
    one.step()
    _until_it_ended(one)
    report = one.report()
    assert (report["state"], report["objects"], report["deleted"], report["fault"]) == ("waiting", 12, 12, "") and report["ended_at"]
    assert next(record.message for record in caplog.records if "compacted" in record.message).startswith("archive: compacted 12 objects of 2 folders to 2")
    one.step()
    assert one.report()["state"] == "waiting", "not due"


def test_a_failure_stays_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    one = Compactor(compact_command(str(tmp_path / "none")), clock=lambda: now[0])
    one.own([0])
    now[0] = compactor.FIRST_S
    one.step()
    _until_it_ended(one)
    assert one.report()["state"] == "failing" and "does not exist" in one.report()["fault"]
    assert [record.message for record in caplog.records if "archive: compaction: " in record.message]
    one = Compactor([str(tmp_path / "no program")], clock=lambda: now[0])
    one.own([0])
    now[0] += compactor.FIRST_S
    one.step()
    assert one.report()["state"] == "failing"


def test_it_ends_with_the_worker() -> None:
    now = [0.0]
    one = Compactor([sys.executable, "-c", "import time; time.sleep(600)"], clock=lambda: now[0])
    one.own([0])
    now[0] = compactor.FIRST_S
    one.step()
    assert one.report()["state"] == "running"
    one.close()
    assert one.report()["state"] != "running"
