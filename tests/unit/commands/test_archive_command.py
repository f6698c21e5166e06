"""`stockstream archive report`, `retain` and `lifecycle`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

from stockstream.cli import run
from stockstream.sinks.archive import retention, usage
from stockstream.sinks.archive.chain import Chain, chain_begins
from stockstream.sinks.archive.compacting import compact, compact_folder
from stockstream.sinks.archive.current import current
from stockstream.sinks.archive.processed import unprocessed
from stockstream.sinks.archive.raw_objects import read_extent
from stockstream.sinks.archive.retention import Plan, plan, retain
from stockstream.sinks.archive.schemas import STORED
from stockstream.sinks.archive.topics import packing, positions
from stockstream.sinks.archive.topics.packing import pack_positions
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, open_store
from tests.archives import LOG, archive, copied, day
from tests.filled_archive import fill
from tests.standins.s3 import s3_server
from tests.unit.sinks.topic_records import Topic, alert
from tests.unit.sinks.topic_records import archive as write_topic

DAYS = ("2023-11-14", "2023-11-15")
TODAY = date(2023, 11, 16)


@pytest.fixture(scope="module")
def two_days() -> MemoryStore:
    """From 22:13 to 00:26 of the next day, of two partitions; only some folders are compacted."""
    store = MemoryStore()
    records = day(seconds=8_000, symbols=2)
    archive(store, records, length=250)
    archive(store, records[:2_000], partition=1, length=250)
    list(compact(store, None, date(2023, 11, 14), date(2023, 11, 14)))
    assert not check(store).faults and {name.split("date=")[1][:10] for name in store.objects if "date=" in name} == set(DAYS)
    return store


@pytest.fixture
def on_the_third_day(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("stockstream.sinks.archive.retention", "stockstream.commands.archive", "stockstream.sinks.archive.verifying.verification"):
        monkeypatch.setattr(f"{module}.today", lambda: TODAY)


def in_folder(store: MemoryStore, root: Path) -> FileStore:
    made = FileStore(root)
    for name, data in store.objects.items():
        made.create(name, data)
    return made


def test_the_help_names_what_each_command_does_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["archive", "--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_the_report(two_days: MemoryStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["archive", "report", "--archive", str(in_folder(two_days, tmp_path).root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["date", "area", "written", "objects", "MB", "average", "KB", "bytes", "a", "tick"]
    areas = (("bars_1m", "compactions", "raw", "ticks"), ("bars_1m", "raw", "ticks"), ("chains",))
    dates = (*DAYS, str(datetime.now(UTC).date()))                       # entries of chains have no date but that of their writing
    assert [line.split()[:2] for line in lines[1:-1]] == [[day, area] for day, some in zip(dates, areas, strict=True) for area in some]
    assert run(["archive", "report", "--archive", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["ticks"].values()) == sum(chain.ticks for chain in check(two_days).chains)
    for one in found["usage"]:
        objects = [name for name in two_days.objects if one["area"] in name.split("/")[:2] and (one["date"] in name or one["area"] == "chains")]
        assert (one["objects"], one["bytes"]) == (len(objects), sum(len(two_days.objects[name]) for name in objects))
        assert one["per_tick"] == (one["bytes"] / found["ticks"][one["date"]] if one["area"] != "chains" else None)
    (tmp_path / "empty").mkdir()
    assert run(["archive", "report", "--archive", str(tmp_path / "empty")]) == 0 and "holds no archive yet" in capsys.readouterr().out


def test_the_report_of_all_areas_before_and_after_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (positions, packing):
        monkeypatch.setattr(module, "IN_A_PACK", 3)
    monkeypatch.setattr(usage, "IN_A_PACK", 3)
    store = MemoryStore()
    fill(store)                                                          # objects that compactions replaced are there again
    source = Topic()
    for number in range(8):
        source.add(alert(number))
        write_topic(source, store, "alerts")
    before, ticks = usage.usage(store)
    assert {one.area for one in before} == {*STORED, "raw", "compactions", "positions", "chains"}
    assert sum(ticks.values()) == sum(chain.ticks for chain in check(store).chains) > 0
    small = {name for name in store.objects if name.startswith("processed/") and "compacted-" not in name}
    for area in STORED:
        of = [one for one in before if one.area == area]
        there = [name for name in store.objects if name.startswith(f"processed/{area}/")]
        assert sum(one.written for one in of) == len([name for name in small if name.startswith(f"processed/{area}/")])
        assert (sum(one.objects for one in of), sum(one.bytes for one in of)) == (len(there), sum(len(store.objects[name]) for name in there))
    list(compact(store, None))
    list(pack_positions(store, None))
    after, _ = usage.usage(store)
    for one in after:
        earlier = next((other for other in before if (other.date, other.area) == (one.date, one.area)), None)
        assert one.area == "compactions" or (earlier is not None and one.written == earlier.written), one
        assert one.area not in STORED or one.objects <= 2
        assert one.area != "positions" or (one.written, one.objects) == (8, 2 + 2), "two packs, and the two newest"
    assert sum(one.objects for one in after) == len(store.objects) < sum(one.objects for one in before)


def ended(store: MemoryStore, raw: bool = True, processed: bool = True) -> MemoryStore:
    """A copy without the first date."""
    left = copied(store)
    before = date(2023, 11, 15)
    retain(left, plan(left, before if raw else None, before if processed else None, lambda *_: 10**9))
    return left


@pytest.mark.parametrize(("raw", "processed"), [(True, True), (True, False), (False, True)])
def test_what_retention_ended_is_no_fault_and_what_is_missing_otherwise_is(two_days: MemoryStore, raw: bool, processed: bool) -> None:
    left = ended(two_days, raw, processed)
    report = check(left)
    assert report.faults == [] and [chain.unprocessed for chain in report.chains] == [0, 0]
    first, second = report.chains
    assert second.last == 1_999 and (first.first > 0) == (second.first > 0) == raw
    assert bool([name for name in left.objects if name.startswith("processed/") and DAYS[0] in name]) != processed
    for name in [name for name in left.objects if name.startswith(("raw/", "processed/"))][::3]:
        changed = copied(left)
        del changed.objects[name]
        again = check(changed)
        newest = name.startswith(("raw/", "processed/ticks/")) and not again.faults
        assert again.faults or (newest and (sum(one.unprocessed for one in again.chains) or [one.last for one in again.chains] != [first.last, 1_999])), name
    retain(left, plan(left, date(2023, 11, 15), date(2023, 11, 15), lambda *_: 10**9))
    assert check(left).faults == []


def test_what_a_killed_retention_leaves_is_no_fault_at_any_moment(two_days: MemoryStore) -> None:
    class Killed(Exception):
        pass

    class Dying(MemoryStore):
        left = 0

        def delete(self, name: str) -> None:
            self.left -= 1
            if self.left < 0:
                raise Killed
            super().delete(name)

    count = len(plan(two_days, date(2023, 11, 15), date(2023, 11, 15), lambda *_: 10**9).entries)
    for moment in range(count + 1):
        store = Dying()
        store.objects, store.written, store.left = dict(two_days.objects), dict(two_days.written), moment
        ending = plan(store, date(2023, 11, 15), date(2023, 11, 15), lambda *_: 10**9)
        if moment < count:
            with pytest.raises(Killed):
                retain(store, ending)
        else:
            retain(store, ending)
        assert check(store).faults == []
        current(store, "ticks")
    assert plan(store, date(2023, 11, 15), date(2023, 11, 15), lambda *_: 10**9).entries == []


class Interrupted(MemoryStore):
    """Does something else before the calls of these numbers."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        super().__init__()
        self.objects = dict(objects)
        self.others: dict[int, list[Callable[[], object]]] = {}
        self._busy, self.count = False, 0

    def _fail_or_wait(self, name: str, can_be_late: bool = False) -> bool:
        if not self._busy:
            self._busy = True
            for other in self.others.pop(self.count, ()):
                other()
            self.count, self._busy = self.count + 1, False
        return super()._fail_or_wait(name, can_be_late)


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.slow
def test_a_retention_beside_a_compaction_never_stops_readers(compacted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sinks.archive.compacting.CALLS_AT_ONCE", 1)
    before, folder = date(2023, 11, 15), "date=2023-11-14/hour=22"
    made = MemoryStore()
    archive(made, day(seconds=7_000, symbols=2), length=600)
    small = {name: data for name, data in made.objects.items() if name.startswith(f"processed/ticks/{folder}/")}
    assert len(small) == 2
    if compacted:
        compact_folder(made, "ticks", folder, None)
        made.objects |= small                                            # a worker that was frozen wrote them a second time
    undisturbed = Interrupted(made.objects)
    compact_folder(undisturbed, "ticks", folder, None)
    moments = combinations_with_replacement(range(undisturbed.count + 1), 2)
    for at in [(first, middle, last) for first, last in moments for middle in {first, last}]:
        store = Interrupted(made.objects)
        ending = Plan()

        def look(store: Interrupted = store, ending: Plan = ending) -> None:
            found = plan(store, None, before, lambda *_: 10**9)
            ending.processed_before, ending.phases = found.processed_before, found.phases

        def begin(store: Interrupted = store, ending: Plan = ending) -> None:
            retain(store, Plan({}, ending.processed_before, (*ending.phases[:2], [])))

        def end(store: Interrupted = store, ending: Plan = ending) -> None:
            retain(store, ending)

        for number, step in zip(at, (look, begin, end), strict=True):
            store.others.setdefault(number, []).append(step)
        compact_folder(store, "ticks", folder, None)
        for steps in list(store.others.values()):                        # after it
            for other in steps:
                other()
        assert [entry for entry in current(store, "ticks") if DAYS[1] in entry.name], at
        assert check(store).faults == [], at
        retain(store, plan(store, None, before, lambda *_: 10**9))
        assert not [name for name in store.objects if name.startswith(("processed/", "compactions/")) and DAYS[0] in name], at


def test_a_verification_beside_a_retention_finds_no_fault_in_what_it_ends() -> None:
    made = MemoryStore()
    archive(made, day(seconds=7_000, symbols=2), length=600)
    list(compact(made, None, date(2023, 11, 14), date(2023, 11, 14)))
    undisturbed, before = Interrupted(made.objects), date(2023, 11, 15)
    assert check(undisturbed).faults == []
    for number in range(undisturbed.count):
        store = Interrupted(made.objects)
        store.others[number] = [lambda store=store: retain(store, plan(store, before, before, lambda *_: 10**9))]  # type: ignore[misc]
        assert check(store).faults == [], number
        del store.objects[next(name for name in store.objects if name.startswith("raw/"))]
        assert check(store).faults, "what is missing otherwise is found"


def test_a_worker_that_starts_after_it_makes_nothing_again(two_days: MemoryStore) -> None:
    left = ended(two_days, raw=False)
    assert [one for one in left.objects if one.startswith("raw/") and DAYS[0] in one]
    for partition in (0, 1):
        chain = Chain(left, LOG, partition)
        chain.open()
        assert unprocessed(chain) == []
    assert list(compact(left, None, end=date(2023, 11, 14))) == []


def test_raw_records_that_are_not_processed_yet_stay() -> None:
    store = MemoryStore()
    archive(store, day(seconds=1_500, symbols=3), length=200, process=1)
    raw = sorted(name for name in store.objects if name.startswith("raw/"))
    ending = plan(store, date(2023, 11, 16), None, lambda *_: 199)
    assert [entry.name for entry in ending.entries] == raw[:1] and ending.raw_through == {(LOG, 0): 199}


def test_the_newest_object_of_a_chain_stays() -> None:
    store = MemoryStore()
    raw = archive(store, day(seconds=1_000, symbols=2), length=200)
    retain(store, plan(store, date(2024, 1, 1), date(2024, 1, 1), lambda *_: 10**9))
    assert [name for name in store.objects if not name.startswith(("chains/", "retention/"))] == raw[-1:] and check(store).faults == []
    chain = Chain(store, LOG, 0)
    chain.open()
    assert chain.newest == raw[-1] and unprocessed(chain) == []
    assert chain_begins(store, LOG, 0) == chain.end + 1 - read_extent(store, chain.newest).count


def test_the_command(two_days: MemoryStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], on_the_third_day: None) -> None:
    store = in_folder(two_days, tmp_path)
    where = ["--archive", str(tmp_path)]
    before = list(store.list(""))
    assert run(["archive", "retain", *where]) == 2 and "give --raw-days" in capsys.readouterr().err
    assert run(["archive", "retain", *where, "--raw-days", "1", "--processed-days", "1", "--dry-run"]) == 0
    assert "would be deleted" in capsys.readouterr().out and list(store.list("")) == before
    assert run(["archive", "retain", *where, "--raw-days", "2", "--processed-days", "2"]) == 0 and "nothing to delete" in capsys.readouterr().out
    assert run(["archive", "retain", *where, "--raw-days", "1", "--processed-days", "1", "--yes"]) == 0
    out = capsys.readouterr().out
    assert f"log {LOG} partition 1: raw offsets through " in out and "processed dates before 2023-11-15" in out and " deleted" in out
    assert check(store).faults == []
    assert run(["archive", "retain", *where, "--raw-days", "1", "--processed-days", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == 0
    assert run(["archive", "lifecycle", *where, "--processed-days", "1"]) == 1 and "is a folder, which has no lifecycle rules" in capsys.readouterr().err


@pytest.mark.slow
def test_lifecycle_rules(
    two_days: MemoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_the_third_day: None
) -> None:  # fmt: skip
    with s3_server(monkeypatch) as server:
        where = ["--archive", "s3://bucket/archive"]
        store = open_store("s3://bucket/archive")
        for name, data in two_days.objects.items():
            store.create(name, data)
        other = {"ID": "others", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 5}}
        server.client.put_bucket_lifecycle_configuration(Bucket="bucket", LifecycleConfiguration={"Rules": [other]})
        assert run(["archive", "lifecycle", *where, "--processed-days", "1", "--print"]) == 0
        assert [rule["Filter"]["Prefix"] for rule in json.loads(capsys.readouterr().out)["Rules"]] == ["archive/compactions/", "archive/processed/"]
        for _ in range(2):
            assert run(["archive", "lifecycle", *where, "--processed-days", "1"]) == 0
            assert "raw objects are kept" in capsys.readouterr().out
        rules = server.client.get_bucket_lifecycle_configuration(Bucket="bucket")["Rules"]
        wanted = {"others": 5, "stockstream archive/processed": 2, "stockstream archive/compactions": 1}
        assert {rule["ID"]: rule["Expiration"]["Days"] for rule in rules} == wanted
        for name in [name for name in store.list("") if DAYS[0] in name and name.startswith(("processed/", "compactions/"))]:
            store.delete(name)                                           # as the bucket does
        assert check(store).faults == []
        for options in (["--raw-days", "2"], ["--raw-days", "2", "--processed-days", "1"]):
            assert run(["archive", "lifecycle", *where, *options]) == 2
            assert "the newest raw object of an idle partition" in (error := capsys.readouterr().err) and "retain --raw-days 2 --yes" in error
        assert server.client.get_bucket_lifecycle_configuration(Bucket="bucket")["Rules"] == rules
        # an earlier release had made a rule for raw objects
        retention.record_rules(store, retention.Rules(2, 1), datetime.now(UTC))
        earlier = {"ID": "stockstream archive/raw", "Status": "Enabled", "Filter": {"Prefix": "archive/raw/"}, "Expiration": {"Days": 2}}
        server.client.put_bucket_lifecycle_configuration(Bucket="bucket", LifecycleConfiguration={"Rules": [*rules, earlier]})
        assert run(["archive", "lifecycle", *where, "--processed-days", "1"]) == 0 and "archive/raw/: the rule is removed" in capsys.readouterr().out
        assert server.client.get_bucket_lifecycle_configuration(Bucket="bucket")["Rules"] == rules
        for name in [name for name in store.list("") if DAYS[0] in name and not name.startswith("chains/")]:
            store.delete(name)                                           # as the bucket does
        assert check(store).faults == [], list(store.list(""))
        assert retention.processed_since(store) == TODAY
        left = [name for name in store.list("raw/") if "-00000-" in name]
        assert len(left) > 2
        store.delete(left[1])
        assert any("are missing before it" in fault for fault in check(store).faults)
