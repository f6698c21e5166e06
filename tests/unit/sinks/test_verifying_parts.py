"""A verification of some dates, of a sample, and one that continues: what is not read is counted, and what is read is checked like everything else."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stockstream import cli
from stockstream.commands import verify
from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.settings import Settings
from stockstream.sinks.archive.clean_settings import KnownSettings
from stockstream.sinks.archive.compacting import compact
from stockstream.sinks.archive.layout import processed_name
from stockstream.sinks.archive.processed import parquet
from stockstream.sinks.archive.verifying.listing import list_objects
from stockstream.sinks.archive.verifying.reading import Reading, StateFile
from stockstream.sinks.archive.verifying.report import Report
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore
from tests.archives import LOG, archive, copied, day
from tests.unit.sinks.topic_records import Topic, frame, prediction
from tests.unit.sinks.topic_records import archive as archive_topic

NOVEMBER_14, NOVEMBER_15 = date(2023, 11, 14), date(2023, 11, 15)


class Counting(MemoryStore):
    """Counts which objects are read whole."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: list[str] = []
        self.stop_after: int | None = None

    def read(self, name: str, tail: int = 0) -> bytes:
        if not tail:
            self.whole.append(name)
            if self.stop_after is not None and len(self.whole) > self.stop_after:
                raise ArchiveUnavailable("memory: stopped")
        return super().read(name, tail)

    def read_of(self, area: str) -> list[str]:
        return [name for name in self.whole if name.startswith(area)]


@pytest.fixture(scope="module")
def made() -> MemoryStore:
    """Two days of one partition in 20 raw objects, and windows and predictions."""
    store = MemoryStore()
    archive(store, day(seconds=9_000, symbols=2), length=150)
    windows, predictions = Topic(), Topic()
    windows.add(frame(0, 99, step=60), frame(100, 150, step=60))
    predictions.add(*(prediction(number, step=60) for number in range(150)))
    archive_topic(windows, store, "windows")
    archive_topic(predictions, store, "predictions")
    assert not check(store).faults and len({name.split("/")[1] for name in store.objects if name.startswith("raw/")}) == 2
    return store


@pytest.fixture
def whole(made: MemoryStore) -> Counting:
    store = Counting()
    store.objects, store.written = dict(made.objects), dict(made.written)
    return store


def checked(store: MemoryStore, **reading: Any) -> Report:
    return check(store, known=KnownSettings(Settings()), reading=Reading(**reading))


def raw_names(store: MemoryStore) -> list[str]:
    return sorted((name for name in store.objects if name.startswith("raw/")), key=lambda name: name[-30:])


def dearer(store: MemoryStore, name: str) -> None:
    """Every price of a ticks object is another one, which only raw shows."""
    table = pq.read_table(pa.BufferReader(store.objects[name]))
    footer = table.schema.metadata[b"stockstream"]
    changed = table.set_column(table.column_names.index("price"), table.schema.field("price"), pc.add(table.column("price"), 1.0))
    store.objects[name] = parquet(changed.replace_schema_metadata(None), footer)


@pytest.mark.parametrize("compacted", [False, True])
def test_a_sample_reads_its_share_and_finds_what_is_wrong_in_it(whole: Counting, *, compacted: bool) -> None:
    if compacted:
        list(compact(whole, None))
    whole.whole.clear()
    full = check(copied(whole))
    report = checked(whole, sample=0.3, seed=5)
    assert not report.faults and report.partial and 0 < report.read < report.objects == full.objects == full.read
    assert report.chains[0].records == full.chains[0].records and report.chains[0].ticks == full.chains[0].ticks
    assert 0 < report.chains[0].compared < full.chains[0].ticks and not report.chains[0].not_compared
    assert report.topics["windows"].rows == full.topics["windows"].rows
    again = Reading(sample=0.3, seed=5)
    assert [again.chosen(name) for name in raw_names(whole)] == [Reading(sample=0.3, seed=5).chosen(name) for name in raw_names(whole)]
    assert [again.chosen(name) for name in raw_names(whole)] != [Reading(sample=0.3, seed=6).chosen(name) for name in raw_names(whole)]


def test_a_changed_row_is_found_in_the_sample_and_only_there(whole: Counting) -> None:
    reading = Reading(sample=0.3, seed=5)
    names = raw_names(whole)
    inside, outside = (next(name for name in names[4:] if reading.chosen(name) is chosen) for chosen in (True, False))
    for raw, found in ((inside, True), (outside, False)):
        store = copied(whole)
        dearer(store, processed_name(raw))
        faults = checked(store, sample=0.3, seed=5).faults
        assert bool(faults) is found and all(processed_name(raw) in fault for fault in faults)


def test_what_is_not_in_the_sample_is_still_missed(whole: Counting) -> None:
    for name in list(whole.objects):
        if name.startswith("positions/"):
            continue
        store = copied(whole)
        del store.objects[name]
        report = checked(store, sample=0.01, seed=5)
        assert report.faults or sum(chain.unprocessed for chain in report.chains) or sum(topic.unwritten for topic in report.topics.values()), name


def test_dates_choose_folders(whole: Counting) -> None:
    first = checked(whole, end=NOVEMBER_14)
    read = set(whole.read_of("raw/"))
    assert not first.faults and first.partial and read == {name for name in raw_names(whole) if "11-14" in name}
    second = checked(whole, begin=NOVEMBER_15, end=NOVEMBER_15)
    assert not second.faults and first.chains[0].last + 1 == second.chains[0].first
    assert first.chains[0].records + second.chains[0].records == check(whole).chains[0].records
    assert second.chains[0].compared == second.chains[0].ticks, "the state at the beginning comes from the day before, where it matters"
    assert not checked(whole, begin=date(2030, 1, 1)).chains
    lost = copied(whole)
    del lost.objects[[name for name in raw_names(whole) if "11-15" in name][2]]
    assert checked(lost, begin=NOVEMBER_15).faults and not checked(lost, end=NOVEMBER_14).faults


def test_a_deleted_ticks_object_at_the_end_of_the_dates_is_missing_because_later_ones_are_there(whole: Counting) -> None:
    newest = [name for name in raw_names(whole) if "11-14" in name][-1]
    del whole.objects[processed_name(newest)]
    assert checked(whole, end=NOVEMBER_14).faults == [f"{processed_name(newest)} is missing, though later objects have been processed"]


def test_what_is_known_of_unprocessed_records(whole: Counting) -> None:
    newest = raw_names(whole)[-1]
    del whole.objects[processed_name(newest)]
    (chain,) = checked(whole).chains
    assert chain.unprocessed and chain.begun == 1 and f"raw/{chain.unprocessed_since}/" in newest


def with_state(store: MemoryStore, path: Path, **reading: Any) -> Report:
    with StateFile(path, store.url, recompute=True) as state:
        return check(store, known=KnownSettings(Settings()), reading=Reading(state=state, **reading))


@pytest.mark.parametrize("compacted", [False, True])
def test_an_interrupted_run_continues_and_reads_nothing_twice(whole: Counting, tmp_path: Path, *, compacted: bool) -> None:
    if compacted:
        list(compact(whole, None))
    full = check(copied(whole), known=KnownSettings(Settings()))
    whole.whole.clear()
    whole.stop_after = 25
    with pytest.raises(ArchiveUnavailable):
        with_state(whole, tmp_path / "state")
    before = set(whole.read_of("raw/"))
    whole.whole.clear()
    whole.stop_after = None
    report = with_state(whole, tmp_path / "state")
    assert not report.faults and report.chains == full.chains and report.topics == full.topics
    assert report.before > 3 and report.read + report.before == report.objects
    assert len(before & set(whole.read_of("raw/"))) <= 3, "the newest one again, and two for the state of clean"
    whole.whole.clear()
    report = with_state(whole, tmp_path / "state")
    assert report.chains == full.chains and report.read == 0 and not whole.read_of("raw/") and not whole.read_of("processed/")


def test_a_changed_object_is_read_again(whole: Counting, tmp_path: Path) -> None:
    assert not with_state(whole, tmp_path / "state").faults
    raw = raw_names(whole)[3]
    for name in (raw, processed_name(raw), next(name for name in whole.objects if name.startswith("processed/windows/"))):
        store = copied(whole)
        data = store.objects[name]
        store.objects[name] = data[:60] + bytes([data[60] ^ 1]) + data[61:]
        store.written[name] = datetime.now(UTC)
        report = with_state(store, tmp_path / "state")
        assert report.faults and any(name in fault for fault in report.faults) and report.read == 1
        assert with_state(store, tmp_path / "state").faults == report.faults, "what is at fault is not recorded as verified"
        del store.objects[name]
        report = with_state(store, tmp_path / "state")
        assert report.faults or report.topics["windows"].unwritten, "what only the newest position lists may be on its way"


def test_a_damaged_state_file_is_one_line(whole: Counting, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with_state(whole, path)
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    assert not with_state(whole, path).faults, "the last line of a killed run"
    rng = random.Random(3)
    lines = good.splitlines(keepends=True)
    for changed, words in (
        (b"nonsense\n", "line 1 is not of a state file"), (b"\xff\n", "line 1 is not of a state file"), (lines[0] + b"{}\n", "line 2 is not of a state file"),
        (good.replace(b'"stockstream_verify":1', b'"stockstream_verify":9'), "has version 9"),
        (good.replace(b"memory://", b"memory:/x"), "is of a verification"),
        (lines[0] + bytes(rng.randrange(256) for _ in range(100)) + b"\n", "is not of a state file"),
    ):
        path.write_bytes(changed)
        with pytest.raises(ArchiveError, match=words) as caught:
            with_state(whole, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArchiveError, match="cannot be used as a state file"):
        StateFile(tmp_path / "nowhere" / "state", "memory://", recompute=True)


@pytest.fixture
def folder(made: MemoryStore, tmp_path: Path) -> Path:
    for name, data in made.objects.items():
        (tmp_path / "archive" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "archive" / name).write_bytes(data)
    return tmp_path / "archive"


def test_the_command_says_how_much_was_read(folder: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(verify.command, ["--archive", str(folder), *arguments], standalone_mode=False)

    sampled = run("--sample", "30%", "--seed", "5")
    assert sampled.return_value == 0 and "no fault in what was checked: read " in sampled.stdout and "(a sample of 30 %, --seed 5)" in sampled.stdout
    assert run("--sample", "0.3", "--seed", "5").stdout == sampled.stdout
    assert "--seed " in run("--sample", "0.3").stdout
    dated = run("--from", "2023-11-14", "--to", "2023-11-14", "--json")
    assert dated.return_value == 0 and run("--date", "2023-11-14", "--json").stdout == dated.stdout
    assert "holds no archive of these dates" in run("--date", "2031-01-01").stderr
    for wrong in (["--sample", "0"], ["--sample", "x"], ["--sample", "101%"], ["--from", "2023-11-15", "--to", "2023-11-14"], ["--date", "x"]):
        assert run(*wrong).exit_code != 0 or run(*wrong).exception


def test_ctrl_c_ends_with_130_and_one_line_on_how_to_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = str(tmp_path / "state")
    arguments = ["verify", "--archive", str(folder), "--resume", state]
    reads = 0
    read = FileStore.read

    def interrupted(store: FileStore, name: str, tail: int = 0) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 40:
            raise KeyboardInterrupt
        return read(store, name, tail)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "read", interrupted)
        assert cli.run(arguments) == 130
    assert capsys.readouterr().err == f"interrupted: the same command continues from {state}\n"
    assert cli.run(arguments) == 0
    assert " were read by an earlier run" in capsys.readouterr().out.splitlines()[-1]
    Path(state).write_bytes(b"?\n")
    assert cli.run(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stockstream: {state}: line 1 is not of a state file: ") and line.endswith("; delete the file to begin again")


def test_every_step_is_announced(whole: Counting) -> None:
    listing = list_objects(whole)
    steps: list[int] = []
    check(whole, steps.append, listing=listing)
    assert sum(steps) == listing.size > 20 and listing.raw[LOG, 0]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads of Linux")
def test_reading_starts_no_threads_of_arrow(folder: Path) -> None:
    """A thread of Arrow that outlives the interpreter and still holds an object's bytes aborts the process: `verify` then ended with 134."""
    code = (
        "import os, sys\nfrom stockstream import cli\nimport stockstream.commands.verify\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "assert cli.run(['verify', '--archive', sys.argv[1], '--no-recompute']) == 0\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "0"
