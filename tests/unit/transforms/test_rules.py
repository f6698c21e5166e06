"""The rules against a slow and plain oracle, however the log is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockstream.errors import StateError
from stockstream.records import WINDOWS_SCHEMA, Closing
from stockstream.transforms.frames import Frame, empty
from stockstream.transforms.rules.detector import Detected, Detector
from stockstream.transforms.rules.state import Checkpoint, bucket_of
from stockstream.transforms.versioned import pack

Row = dict[str, Any]
Log = list[tuple[Closing, list[Row]]]
START = 1_700_000_000


def row(symbol: str, second: int, **values: Any) -> Row:
    defaults = {
        "symbol": symbol, "source": "s", "second": second, "open": 100.0, "high": 100.0, "low": 100.0, "close": 100.0, "volume": 100, "ticks": 1, "quotes": 0,
        "volume_5m": 30_000, "ticks_5m": 300, "seconds_5m": 300, "quality": "", "revised": False, "partition": 3, "price_60s": 100.0, "return_60s": 0.0,
    }  # fmt: skip
    return {name: (defaults | values).get(name) for name in WINDOWS_SCHEMA.names}


def quiet(seconds: Iterable[int], source: str = "s", first_offset: int = 0) -> Log:
    return [(Closing(first_offset + i, source, second - 1, second), []) for i, second in enumerate(seconds)]


def frame(log: Sequence[tuple[Closing, list[Row]]], start: int, through: int, name: str = "log-1") -> Frame:
    rows = [r | {"offset": closing.offset, "source": closing.source} for closing, of in log for r in of]
    batch = pa.RecordBatch.from_pylist(rows, schema=WINDOWS_SCHEMA) if rows else empty(WINDOWS_SCHEMA)
    return Frame(name, start, through, tuple(closing for closing, _ in log), batch)


def run(log: Log, name: str = "log-1") -> Detected:
    found = Detector(3).take_frame(frame(log, 0, log[-1][0].offset, name))
    assert found is not None
    return found


def states(found: Detected) -> list[tuple[str, str, int]]:
    return [(alert.id, alert.state, alert.as_of) for alert in found.alerts]


def test_a_volume_spike_opens_is_updated_only_by_more_and_closes_after_sixty_seconds() -> None:
    log = quiet(range(START, START + 70))
    log[2][1].append(row("A", START + 2, volume=1000))
    log[3][1].append(row("A", START + 3, volume=900))
    log[5][1].append(row("A", START + 5, volume=2000))
    found = run(log)
    name = f"A-volume_spike-{START + 2}"
    assert states(found) == [(name, "opened", (START + 3) * 1000), (name, "updated", (START + 6) * 1000), (name, "closed", (START + 66) * 1000)]
    opened, updated, closed = found.alerts
    assert (opened.value, opened.baseline, opened.threshold, opened.severity) == (1000.0, 100.0, 800.0, "warning")
    assert (updated.value, updated.severity, closed.severity, closed.value) == (2000.0, "critical", "critical", 2000.0)
    assert opened.opened_at == closed.opened_at == (START + 3) * 1000
    assert opened.window["volume_5m"] == 30_000 and opened.window["second"] == START + 2
    assert opened.message == "A: 1,000 shares in one second, 10.0 times the 5-minute average of 100.0."


@pytest.mark.parametrize(("values", "opens"), [
    ({"volume": 800}, True), ({"volume": 799}, False), ({"volume": 0, "volume_5m": 0}, False),
    ({"volume": 800, "seconds_5m": 119, "volume_5m": 11_900}, False), ({"volume": 800, "seconds_5m": 120, "volume_5m": 12_000}, True),
    ({"volume": 800, "revised": True}, False), ({"volume": 800, "close": None}, True),
])  # fmt: skip
def test_when_a_volume_spike_is_one(values: Row, opens: bool) -> None:
    log = quiet([START])
    log[0][1].append(row("A", START, **values))
    assert bool(run(log).alerts) is opens


@pytest.mark.parametrize(("values", "opens"), [
    ({"close": 99.0}, True), ({"close": 99.01}, False), ({"close": None}, False), ({"close": 90.0, "price_60s": None}, False),
    ({"close": 90.0, "revised": True}, False),
])  # fmt: skip
def test_when_a_price_drop_is_one(values: Row, opens: bool) -> None:
    log = quiet([START])
    log[0][1].append(row("A", START, **values))
    assert bool(run(log).alerts) is opens


def test_a_price_drop_says_by_how_much_and_three_per_cent_are_critical() -> None:
    log = quiet([START])
    log[0][1].extend([row("A", START, close=98.5), row("B", START, close=97.0)])
    first, second = run(log).alerts
    assert first.message == "A: 98.50 is 1.50 % below 100.00, the price 60 s before."
    assert (first.severity, second.severity) == ("warning", "critical")


@pytest.mark.parametrize(("values", "message"), [
    ({"close": 0.000301, "price_60s": 0.000318}, "A: 0.000301 is 5.35 % below 0.000318, the price 60 s before."),
    ({"close": 187.5, "price_60s": 189.42}, "A: 187.50 is 1.01 % below 189.42, the price 60 s before."),
    ({"close": 727_500.5, "price_60s": 750_000.5}, "A: 727,500.50 is 3.00 % below 750,000.50, the price 60 s before."),
    ({"volume": 800, "volume_5m": 10_000}, "A: 800 shares in one second, 24.0 times the 5-minute average of 33.33."),
])  # fmt: skip
def test_an_alert_keeps_the_digits_of_small_figures(values: Row, message: str) -> None:
    log = quiet([START])
    log[0][1].append(row("A", START, **values))
    assert [alert.message for alert in run(log).alerts] == [message]


@pytest.mark.parametrize(("values", "more", "figures"), [
    ({"quality": "partial"}, "", {}),
    ({"quality": "partial,after_gap", "gap_s": 1_201, "price_before_gap": 100.0},
     " It is the first trade after 1,201 s without one; the price before was 100.00.", {"gap_s": 1_201, "price_before_gap": 100.0}),
    ({"quality": "wide,gap"}, " The feed was away within these 5 minutes, so trades may be missing.", {}),
    ({"quality": "after_gap,gap", "gap_s": 61, "price_before_gap": 9.5},
     " It is the first trade after 61 s without one; the price before was 9.50. The feed was away within these 5 minutes, so trades may be missing.",
     {"gap_s": 61, "price_before_gap": 9.5}),
])  # fmt: skip
def test_an_alert_made_from_a_row_at_a_gap_says_so(values: Row, more: str, figures: Row) -> None:
    log = quiet([START])
    log[0][1].append(row("A", START, close=98.5, **values))
    (alert,) = run(log).alerts
    assert alert.message == f"A: 98.50 is 1.50 % below 100.00, the price 60 s before.{more}"
    assert {name: value for name, value in alert.window.items() if name in ("gap_s", "price_before_gap")} == figures
    assert alert.window["quality"] == values["quality"]


def test_a_condition_in_the_sixtieth_second_keeps_the_alert_open() -> None:
    log = quiet(range(START, START + 61))
    log[0][1].append(row("A", START, volume=1000))
    log[60][1].append(row("A", START + 60, volume=1000))
    assert [alert.state for alert in run(log).alerts] == ["opened"]


def test_one_closing_of_many_seconds_closes_and_opens_anew_in_order() -> None:
    log: Log = [(Closing(0, "s", START - 1, START + 200), [row("A", START, volume=1000), row("B", START + 60, close=90.0), row("A", START + 100, volume=1000)])]
    assert states(run(log)) == [
        (f"A-volume_spike-{START}", "opened", (START + 1) * 1000),
        (f"A-volume_spike-{START}", "closed", (START + 61) * 1000),
        (f"B-price_drop-{START + 60}", "opened", (START + 61) * 1000),
        (f"A-volume_spike-{START + 100}", "opened", (START + 101) * 1000),
        (f"B-price_drop-{START + 60}", "closed", (START + 121) * 1000),
        (f"A-volume_spike-{START + 100}", "closed", (START + 161) * 1000),
    ]


def test_another_source_neither_moves_the_clock_nor_leaves_an_alert_behind_when_it_takes_over() -> None:
    log: Log = [
        (Closing(0, "a", START - 1, START), [row("A", START, volume=1000)]),
        (Closing(1, "b", START + 499, START + 500), [row("B", START + 500)]),
    ]
    assert [alert.state for alert in run(log).alerts] == ["opened"]
    log.append((Closing(2, "b", START + 500, START + 501), [row("A", START + 501, volume=1000)]))
    assert states(run(log)) == [
        (f"A-volume_spike-{START}", "opened", (START + 1) * 1000),
        (f"A-volume_spike-{START}", "closed", (START + 61) * 1000),
        (f"A-volume_spike-{START + 501}", "opened", (START + 502) * 1000),
    ]


def test_the_market_summary_counts_each_second_once() -> None:
    log = quiet([START])
    log[0][1].extend([row("A", START, return_60s=0.02), row("B", START, return_60s=-0.01), row("C", START, return_60s=None), row("D", START, revised=True)])
    (summary,) = run(log).markets
    assert {name: summary[name] for name in ("partition", "source", "second", "symbols", "advancers", "decliners", "unchanged", "volume", "ticks")} == {
        "partition": 3, "source": "s", "second": START, "symbols": 3, "advancers": 1, "decliners": 1, "unchanged": 0, "volume": 300, "ticks": 3,
    }  # fmt: skip
    assert summary["returns_60s"] == 2 and summary["sum_return_60s"] == pytest.approx(0.01)


def test_a_row_that_comes_late_opens_an_alert_but_takes_nothing_back_and_is_in_no_market_summary() -> None:
    log = quiet(range(START, START + 100))
    log[10][1].append(row("A", START + 8, volume=1000, quality="partial,late"))
    log[20][1].append(row("A", START + 20, volume=900))
    log[25][1].append(row("A", START + 15, volume=2000, quality="late"))
    log[30][1].append(row("A", START + 5, volume=800, quality="late"))
    log[81][1].append(row("A", START + 79, volume=800, quality="late"))
    found = run(log)
    one, two = f"A-volume_spike-{START + 8}", f"A-volume_spike-{START + 79}"
    assert states(found) == [
        (one, "opened", (START + 9) * 1000), (one, "updated", (START + 16) * 1000), (one, "closed", (START + 81) * 1000), (two, "opened", (START + 80) * 1000),
    ]  # fmt: skip
    assert [market["second"] for market in found.markets] == [START + 20]


def test_frames_beyond_what_is_expected_or_of_an_older_log_are_dropped_and_a_newer_log_starts_afresh() -> None:
    log = quiet(range(START, START + 10))
    detector = Detector(3)
    assert detector.take_frame(frame(log[4:5], 4, 4)) is not None and detector.expect == 5
    assert detector.take_frame(frame(log[6:], 6, 9)) is None and detector.expect == 5
    assert detector.take_frame(frame(log[:5], 0, 4)) == Detected() and detector.expect == 5
    assert detector.take_frame(frame(log, 0, 9, "log-0")) is None
    spike = quiet([START])
    spike[0][1].append(row("A", START, volume=1000))
    assert detector.take_frame(frame(spike, 0, 0, "log-2")) is not None
    assert (detector.log, detector.expect, len(detector.open_alerts)) == ("log-2", 1, 1)


def test_a_state_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(StateError, match="partition 3"):
        Detector.restore(3, {b"3/log-1/0/open": b"\xc1"})


def test_records_hold_only_what_changed_and_others_partitions_and_older_logs_are_ignored() -> None:
    log = quiet(range(START, START + 5))
    log[1][1].append(row("A", START + 1, volume=1000))
    log[3][1].append(row("A", START + 3, volume=900))
    detector = Detector(3)
    detector.take_frame(frame(log[:1], 0, 0))
    assert [key for key, _ in detector.records()] == [b"3/log-1/0/head"]
    assert detector.records() == []
    detector.take_frame(frame(log[1:2], 1, 1))
    records = dict(detector.records())
    assert list(records) == [b"3/log-1/0/open/%d/0/0" % bucket_of("A"), b"3/log-1/0/head"]
    assert all(msgspec.msgpack.decode(value)["through"] == 1 for value in records.values())
    other = {b"33/log-9/0/head": records[b"3/log-1/0/head"], b"3/log-0/0/head": pack(Checkpoint(v=2, through=99, log="log-0", resume_input=9))}
    again = Detector.restore(3, records | other)
    assert (again.log, again.expect, again.open_alerts) == ("log-1", 2, detector.open_alerts)
    again.take_frame(frame(log[2:4], 2, 3))
    assert [key for key, _ in again.records()] == [b"3/log-1/0/head"], "that it goes on is in the head"


def oracle(log: Log) -> list[tuple[str, str, int]]:
    """Alerts second by second, one symbol and rule at a time: (id, state, as_of)."""
    out: list[tuple[tuple[int, str, int, str, str], tuple[str, str, int]]] = []
    for symbol in ("A", "B", "C"):
        for rule in ("price_drop", "volume_spike"):
            opened = last = best = None
            for closing, rows in log:
                late = sorted({r["second"] for r in rows if r["second"] <= closing.after and not r["revised"]})
                for second in (*late, *range(closing.after + 1, closing.second + 1)):
                    order = (closing.offset, closing.source, second, symbol, rule)
                    hit = False
                    for r in (r for r in rows if r["symbol"] == symbol and r["second"] == second and not r["revised"]):
                        if rule == "volume_spike":
                            hit, extreme = r["volume"] >= 8 * r["volume_5m"] / r["seconds_5m"], r["volume"]
                        else:
                            hit, extreme = r["close"] <= 0.99 * r["price_60s"], -r["close"]
                        if hit and opened is None:
                            opened, last, best = second, second, extreme
                            out.append((order, (f"{symbol}-{rule}-{opened}", "opened", (second + 1) * 1000)))
                        elif hit and extreme > best:
                            best = extreme
                            out.append((order, (f"{symbol}-{rule}-{opened}", "updated", (second + 1) * 1000)))
                        last = max(last, second) if hit else last        # a row may come late
                    if opened is not None and not hit and last is not None and second == last + 60:
                        out.append((order, (f"{symbol}-{rule}-{opened}", "closed", (second + 1) * 1000)))
                        opened = None
    return [told for _, told in sorted(out)]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    log: Log = []
    second, offset = START, 0
    sent = set[tuple[str, int]]()
    for _ in range(draw(st.integers(1, 25))):
        after, second = second, second + draw(st.sampled_from([1, 1, 1, 2, 20, 59, 60, 61, 130]))
        offset += draw(st.integers(1, 3))
        rows = []
        late = st.lists(st.integers(max(START + 1, after - 30), after), max_size=3) if after > START else st.just([])
        for at in sorted({*draw(late), *draw(st.lists(st.integers(after + 1, second), max_size=4))}):
            for symbol in sorted(draw(st.sets(st.sampled_from("ABC"), min_size=1))):
                revised = (symbol, at) in sent or draw(st.sampled_from([False, False, False, True]))
                rows.append(row(
                    symbol, at, volume=draw(st.sampled_from([10, 100, 800, 900, 1700])), close=draw(st.sampled_from([100.0, 99.0, 98.0, 96.0])),
                    revised=revised, quality="late" if at <= after and not revised else "",
                ))  # fmt: skip
                if not revised:
                    sent.add((symbol, at))
        log.append((Closing(offset, "s", after, second), rows))
    return log


def plain(found: Iterable[Detected]) -> tuple[list[bytes], list[Any]]:
    every = list(found)
    return [msgspec.json.encode(alert) for one in every for alert in one.alerts], [market for one in every for market in one.markets]


@pytest.mark.slow
@given(logs(), st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_with_repeats_and_restarts_gives_the_same_alerts(log: Log, data: st.DataObject) -> None:
    whole = run(log)
    assert states(whole) == oracle(log)

    last = log[-1][0].offset
    cuts = sorted(data.draw(st.sets(st.integers(1, last), max_size=6)))
    detector, stored, found = Detector(3), dict[bytes, bytes](), []
    for start, stop in zip([0, *cuts], [*cuts, last + 1], strict=True):
        back = data.draw(st.integers(0, start))
        got = detector.take_frame(frame([item for item in log if back <= item[0].offset < stop], back, stop - 1))
        assert got is not None
        found.append(got)
        stored.update(detector.records())
        if data.draw(st.booleans()):
            detector = Detector.restore(3, stored)
    assert plain(found) == plain([whole])
