"""What `detect` stores: bounded in a storm, exact after a write in part, read from older formats, robust against rubbish."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from stockstream.errors import StateError
from stockstream.records import WINDOWS_SCHEMA, Closing
from stockstream.transforms.frames import Frame, empty
from stockstream.transforms.rules import state as alert_state
from stockstream.transforms.rules.detector import Detected, Detector
from stockstream.transforms.rules.state import MAX_LASTS, OpenAlert, bucket_of
from stockstream.transforms.timing import FORGET_MS
from stockstream.transforms.versioned import MAX_VALUE_BYTES, pack
from tests.changelogs import Changelog
from tests.unit.transforms.test_rules import START, Log, frame, plain, quiet, row, run, states

HOUR_MS = 3_600_000


def storm(symbols: Sequence[str], source: str, offset: int, second: int, close: float, volume: int) -> Frame:
    """A row of every symbol in one closing."""
    one = row("", second, close=close, volume=volume, source=source, mean_5m=99.123456789, vwap_5m=98.7654321, high_5m=101.5, low_5m=97.25) | {"offset": offset}
    columns: dict[str, Any] = {name: [value] * len(symbols) for name, value in one.items()}
    return Frame(
        "log-1", offset, offset, (Closing(offset, source, second - 1, second),), pa.RecordBatch.from_pydict(columns | {"symbol": symbols}, WINDOWS_SCHEMA),
    )  # fmt: skip


def fed(detector: Detector, frame: Frame) -> Detected:
    found = detector.take_frame(frame)
    assert found is not None
    return found


@pytest.mark.slow
def test_a_storm_of_twenty_thousand_symbols_is_stored_in_records_that_a_message_holds() -> None:
    """Both rules of every symbol, names at their longest. A second in which nothing but the last second with the condition changes costs one record."""
    symbols, source = ["銘" * 26 + f"{number:06d}" for number in range(20_000)], "源" * 128
    detector, stored = Detector(3), dict[bytes, bytes]()
    opened = fed(detector, storm(symbols, source, 0, START, 98.0, 5_000))
    assert len(opened.alerts) == 40_000
    first = detector.records()
    assert max(len(value) for _, value in first) < MAX_VALUE_BYTES / 5
    stored.update(first)
    assert fed(detector, storm(symbols, source, 1, START + 1, 98.0, 5_000)).alerts == []
    second = detector.records()
    assert len(second) == 1 and len(second[0][1]) < MAX_VALUE_BYTES / 5
    stored.update(second)
    again = Detector.restore(3, stored)
    assert again.open_alerts == detector.open_alerts
    assert {alert.last for alert in again.open_alerts} == {START + 1}
    end = Frame("log-1", 2, 2, (Closing(2, source, START + 1, START + 61),), empty(WINDOWS_SCHEMA))
    assert len(fed(again, end).alerts) == 40_000
    stored.update(again.records(1))
    assert Detector.restore(3, stored).open_alerts == []


def test_one_alert_of_many_rewrites_only_its_bucket() -> None:
    detector = Detector(3)
    detector.take_frame(storm([f"S{number}" for number in range(2_000)], "s", 0, START, 98.0, 0))
    whole = sum(len(value) for _, value in detector.records())
    detector.take_frame(storm(["S7"], "s", 1, START + 1, 97.0, 0))
    records = detector.records()
    assert [key for key, _ in records] == [b"3/log-1/0/open/%d/1/0" % bucket_of("S7"), b"3/log-1/0/head"]
    assert sum(len(value) for _, value in records) < whole / 30


def test_symbols_that_share_a_bucket_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever chooses names can put them all into one bucket. Pieces of a write that was cut off never replace those of the write before."""
    monkeypatch.setattr("stockstream.transforms.rules.detector.bucket_of", lambda symbol: 5)
    monkeypatch.setattr("stockstream.transforms.rules.state.bucket_of", lambda symbol: 5)
    detector, symbols = Detector(3), [f"S{number:05d}" for number in range(9_000)]
    detector.take_frame(storm(symbols, "s", 0, START, 98.0, 0))
    first = detector.records()
    assert len(first) >= 4 and max(len(value) for _, value in first) < 2 * MAX_VALUE_BYTES
    kept = detector.open_alerts
    before = msgspec.msgpack.encode(kept)
    detector.take_frame(storm(symbols, "s", 1, START + 1, 97.0, 0))
    second = detector.records()
    for cut in range(len(second)):
        again = Detector.restore(3, dict(first) | dict(second[:cut]))
        assert msgspec.msgpack.encode(again.open_alerts) == (before if cut < len(second) - 1 else msgspec.msgpack.encode(detector.open_alerts))
    assert Detector.restore(3, dict(first + second)).open_alerts == detector.open_alerts


def test_lasts_that_a_head_cannot_hold_are_written_with_their_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_LASTS * 5 + 256 * 40 < MAX_VALUE_BYTES
    monkeypatch.setattr("stockstream.transforms.rules.detector.MAX_LASTS", 100)
    detector, stored, symbols = Detector(3), dict[bytes, bytes](), [f"S{number}" for number in range(1_000)]
    for at in range(4):
        detector.take_frame(storm(symbols, "s", at, START + at, 98.0, 0))
        stored.update(detector.records())
        assert Detector.restore(3, stored).open_alerts == detector.open_alerts


def market(rng: random.Random, symbols: Sequence[str]) -> Log:
    log: Log = []
    closed = {"s": START, "t": START + 1_000}
    for offset in range(60):
        source = rng.choice("st")
        after, closed[source] = closed[source], closed[source] + rng.choice((1, 1, 1, 5, 61))
        second = rng.randrange(after + 1, closed[source] + 1)
        rows = [row(s, second, volume=rng.choice((100, 900, 1_700)), close=rng.choice((100.0, 98.0, 96.0))) for s in rng.sample(symbols, 3)]
        log.append((Closing(offset, source, after, closed[source]), rows))
    return log


@pytest.mark.parametrize("seed", range(12))
def test_a_writer_that_dies_anywhere_in_a_batch_loses_and_changes_nothing(seed: int) -> None:
    """Batches are cut anywhere, restarts read the ranges that heads name, and alerts that are sent again are the same."""
    rng = random.Random(seed)
    log = market(rng, [f"S{number}" for number in range(12)])
    whole = run(log)
    want = {(alert.id, alert.state, alert.as_of): msgspec.json.encode(alert) for alert in whole.alerts}
    got: dict[tuple[str, str, int], bytes] = {}
    detector, changelog, at, term = Detector(3), Changelog(rng), 0, 0
    while at < len(log):
        step = rng.randrange(1, 5)
        found = fed(detector, frame(log[at : at + step], at, at + step - 1))
        for alert in found.alerts:
            key = alert.id, alert.state, alert.as_of
            assert got.setdefault(key, msgspec.json.encode(alert)) == want[key]
        records = detector.records(term)
        at += step
        if rng.random() < 0.3:
            changelog.write(records[: rng.randrange(len(records) + 1)])
            stored = changelog.read(Detector.needs)
            detector, term = Detector.restore(3, stored.records, stored.offsets), term + 1
            at = max(0, detector.expect)
            continue
        changelog.write(records, detector.index)
    assert got == want


def test_a_source_that_has_ended_closes_its_alerts_after_a_day_of_the_logs_time() -> None:
    def heard(offset: int, source: str, second: int, clock: int, *rows: Any) -> Frame:
        made = frame([(Closing(offset, source, second - 1, second), list(rows))], offset, offset)
        return Frame(made.log, made.start, made.through, made.closings, made.rows, log_clock=clock)

    def told(restart: bool) -> list[tuple[str, str, int]]:
        detector, stored = Detector(3), dict[bytes, bytes]()
        out: list[tuple[str, str, int]] = []
        frames = [
            heard(0, "gone", START, HOUR_MS, row("A", START, volume=1000)),
            heard(1, "live", START + 1, 0),                              # a frame whose clock is not known: "gone" is not asked about
            heard(2, "live", START + 2, HOUR_MS + FORGET_MS),
            heard(3, "live", START + 3, HOUR_MS + FORGET_MS + 1),
            heard(4, "live", START + 4, HOUR_MS + FORGET_MS + 2),
        ]
        for number, one in enumerate(frames):
            before = len(out)
            out += states(fed(detector, one))
            assert (len(out) > before) == (number in (0, 3))
            stored.update(detector.records())
            if restart:
                detector = Detector.restore(3, stored)
        assert detector.open_alerts == [] and not detector._sources and not detector._owner and not detector._buckets
        return out

    name = f"A-volume_spike-{START}"
    assert told(False) == told(True) == [(name, "opened", (START + 1) * 1000), (name, "closed", (START + 61) * 1000)]


def test_a_source_that_tells_of_another_series_closes_what_it_left_open() -> None:
    """However the log is cut: `clean` forgot the source in between, so the closing does not follow upon the one before."""
    log: Log = [
        (Closing(0, "s", START - 1, START), [row("A", START, volume=1000)]),
        (Closing(1, "s", START - 500, START - 499), [row("A", START - 499, volume=1000)]),
    ]
    want = [
        (f"A-volume_spike-{START}", "opened", (START + 1) * 1000),
        (f"A-volume_spike-{START}", "closed", (START + 61) * 1000),
        (f"A-volume_spike-{START - 499}", "opened", (START - 498) * 1000),
    ]
    assert states(run(log)) == want
    detector = Detector(3)
    first = fed(detector, frame(log[:1], 0, 0))
    again = Detector.restore(3, dict(detector.records()))
    assert states(first) + states(fed(again, frame(log[1:], 1, 1))) == want


def version_1(detector: Detector) -> dict[bytes, bytes]:
    """The records as version 1 had them."""
    through = detector.expect - 1
    alerts = [
        {name: getattr(alert, name) for name in OpenAlert.__struct_fields__} | {"window": dict(zip(alert_state.WINDOW_COLUMNS, alert.window, strict=True))}
        for alert in detector.open_alerts
    ]
    return {
        b"3/log-1/0/open": msgspec.msgpack.encode([through, "log-1", alerts]),
        b"3/log-1/0/head": msgspec.msgpack.encode([through, "log-1", detector.resume_input, [[0, 5]]]),
    }


def test_records_of_version_1_are_read_and_written_as_version_2() -> None:
    log = market(random.Random(3), [f"S{number}" for number in range(12)])
    whole, detector = run(log), Detector(3)
    first = fed(detector, frame(log[:30], 0, 29))
    old = version_1(detector)
    assert all(Detector.readable(key, value) == "" for key, value in old.items())
    assert Detector.needs(old) == [(0, 5)]
    again = Detector.restore(3, old)
    assert again.open_alerts == detector.open_alerts and again.open_alerts
    second = fed(again, frame(log[30:40], 30, 39))
    stored = old | dict(again.records(1))
    del stored[b"3/log-1/0/open"]
    third = fed(Detector.restore(3, stored), frame(log[40:], 40, 59))
    assert plain([first, second, third]) == plain([whole])


def some_records() -> dict[bytes, bytes]:
    detector = Detector(3)
    log = quiet(range(START, START + 2))
    log[0][1].append(row("A", START, volume=1000))
    detector.take_frame(frame(log, 0, 1))
    return dict(detector.records())


def test_fields_that_are_not_known_are_ignored_and_missing_ones_get_their_default() -> None:
    stored: dict[bytes, bytes] = {}
    for key, value in some_records().items():
        record = msgspec.msgpack.decode(value) | {"colour": "green"}
        if b"/open/" in key:
            at = [*record.get("columns", alert_state.WINDOW_COLUMNS[1:])]
            record["columns"] = [*at[1:], "mood"]                        # one column less, one more
            for alert in record["alerts"]:
                alert[-1] = [*alert[-1][1:], 5]
                alert.append("new")
        stored[key] = msgspec.msgpack.encode(record)
    (alert,) = Detector.restore(3, stored).open_alerts
    window = dict(zip(alert_state.WINDOW_COLUMNS, alert.window, strict=True))
    assert (window["second"], window["volume"], window["source"]) == (None, 1000, "s")


def test_a_newer_format_is_refused_in_one_line() -> None:
    for key, value in some_records().items():
        newer = msgspec.msgpack.encode(msgspec.msgpack.decode(value) | {"v": 3})
        with pytest.raises(StateError, match=r"newer stockstream \(format 3"):
            Detector.restore(3, {key: newer})
        with pytest.raises(StateError, match=r"newer stockstream"):
            Detector.readable(key, newer)


def test_a_record_that_the_head_names_and_that_is_gone_is_an_error() -> None:
    stored = {key: value for key, value in some_records().items() if key.endswith(b"/head")}
    with pytest.raises(StateError, match=f"first bucket {bucket_of('A')}: stop all workers and delete the changelog"):
        Detector.restore(3, stored)


def test_rubbish_is_told_from_records_and_never_raises_anything_else() -> None:
    rng, good = random.Random(1), some_records()
    assert all(Detector.readable(key, value) == "" for key, value in good.items())
    keys = [*good, b"3/log-1/0/open"]
    values: list[bytes] = [
        b"", b"\xc1", b"[]", b"\x80", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode([1, "x", [{"symbol": "A"}]]), b"\x91" * 5_000,
        pack(alert_state.Bucket(v=2, through=1 << 62, log="z", number=1 << 40)),
        pack(alert_state.Checkpoint(v=2, through=-1, log="z", resume_input=0, lasts={900: [1]})),
    ]  # fmt: skip
    for value in good.values():
        values += [value[: rng.randrange(len(value))] for _ in range(20)]
        for _ in range(200):
            changed = bytearray(value)
            changed[rng.randrange(len(value))] = rng.randrange(256)
            values.append(bytes(changed))
    for key in keys:
        for value in values:
            try:
                bad = Detector.readable(key, value)
                detector = Detector.restore(3, good | {key: value})
                detector.take_frame(frame(quiet([START + 2, START + 500], first_offset=2), 2, 3, "zzz"))
            except StateError:
                continue
            assert isinstance(bad, str)
    assert Detector.readable(b"nonsense", next(iter(good.values()))) != ""
