"""Well-formed frames and state records that no stage of ours writes: they are refused, or cost no more than ours."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from stockstream.errors import FrameError
from stockstream.records import TICKS_SCHEMA, Closing
from stockstream.transforms.frame_checks import LOG_AHEAD_MS
from stockstream.transforms.frames import Assembler, Frame, empty, encode, received
from stockstream.transforms.rules import state as alert_state
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.versioned import pack
from stockstream.transforms.windows.windows import Windows
from tests.forged import good_frames

TIME = 0x18BCFE56800
LOG = f"{TIME:011x}-0123abcd"
S = TIME // 1000


def ticks(*rows: tuple[int, int]) -> pa.RecordBatch:
    """Ticks of A by (offset, second)."""
    return pa.RecordBatch.from_pylist(
        [{"offset": offset, "symbol": "A", "event_time": 1000 * second, "price": 1.0, "size": 1, "source": "a", "index": 0} for offset, second in rows],
        schema=TICKS_SCHEMA,
    )


def test_a_core_that_failed_in_a_frame_takes_no_other_one() -> None:
    core = Windows(0, revise_s=30)
    with pytest.raises(FrameError, match="lie"):
        core.take_frame(Frame(LOG, 0, 1, (Closing(1, "a", S, S + 1),), ticks((0, S - 600_000_000), (1, S + 1))))
    with pytest.raises(FrameError, match="must be restored first"):
        core.take_frame(Frame(LOG, 0, 1, (Closing(1, "a", S, S + 1),), ticks((0, S), (1, S + 1))))


def test_closings_that_do_not_follow_upon_each_other_are_series_of_their_own() -> None:
    core = Windows(0, revise_s=30)
    closings = tuple(Closing(number, "a", S + 3 * number, S + 3 * number + 1) for number in range(1_500))
    rows = core.take_frame(Frame(LOG, 0, 1_499, closings, empty(TICKS_SCHEMA)))
    assert rows is not None and tuple(rows.closings) == closings


def open_alert(symbol: str, rule: str = "price_drop", source: str = "a") -> alert_state.OpenAlert:
    return alert_state.OpenAlert(symbol, rule, source, S, S, "warning", 1.0, 2.0, 1.98, (source, *(None for _ in alert_state.WINDOW_COLUMNS[1:])))


@pytest.mark.parametrize("forged", [[open_alert("A"), open_alert("A")], [open_alert("B")]])
def test_a_bucket_with_an_alert_twice_or_of_another_bucket_is_not_readable(forged: list[alert_state.OpenAlert]) -> None:
    [(key, value)] = alert_state.bucket_records("0/x/0", alert_state.bucket(5, "x", alert_state.bucket_of("A"), 0, forged))
    assert "has an alert twice" in Detector.readable(key, value)


def test_a_head_with_times_for_an_empty_bucket_is_no_fault() -> None:
    head = alert_state.Checkpoint(v=alert_state.FORMAT, through=9, log=LOG, resume_input=1, buckets={7: 5}, lasts={7: [1]})
    records = dict(alert_state.bucket_records(f"0/{LOG}/0", alert_state.bucket(5, LOG, 7, 0, [])))
    core = Detector.restore(0, {**records, f"0/{LOG}/0/head".encode(): pack(head)})
    _, frame = good_frames()[-1]
    core.take_frame(replace(frame, log=LOG, start=10, through=99, closings=()))
    assert core.records()


def test_alerts_of_a_symbol_in_two_sources_both_end() -> None:
    number = alert_state.bucket_of("A")
    forged = [open_alert("A"), open_alert("A", "volume_spike", "b")]
    core = Detector.restore(0, dict(alert_state.bucket_records(f"0/{LOG}/0", alert_state.bucket(5, LOG, number, 0, forged))))
    core.expect = 6
    _, frame = good_frames()[-1]
    closings = (Closing(10, "a", S, S + 90), Closing(11, "b", S, S + 90))
    found = core.take_frame(replace(frame, log=LOG, start=6, through=11, closings=closings, rows=frame.rows.slice(0, 0)))
    assert found is not None and [alert.state for alert in found.alerts] == ["closed", "closed"] and not core.open_alerts


def part(number: int, log: str = LOG, through: int = 7, parts: int = 3) -> Frame:
    return Frame(log, 7, through, (), ticks((7, S + number)), number, parts)


def test_frames_of_others_between_the_parts_displace_none() -> None:
    assembler = Assembler()
    whole = Frame("other", 0, 9, (), empty(TICKS_SCHEMA))
    for offset, frame in enumerate((part(0), whole, part(0, "other"), part(0), part(1, parts=2), part(1), part(1, through=8))):
        assert assembler.feed(frame, offset) is (whole if frame is whole else None)
    found = assembler.feed(part(2), 9)
    assert found is not None and found.rows.column("event_time").to_pylist() == [1000 * (S + number) for number in range(3)] and assembler.first == 3
    assert assembler.feed(part(2), 10) is None, "it is told once"


def test_a_forged_part_does_not_displace_the_one_that_follows() -> None:
    assembler = Assembler()
    forged = replace(part(1), rows=ticks((7, 1)))
    assert [assembler.feed(frame, offset) for offset, frame in enumerate((part(0), forged, part(1), part(0)))] == [None] * 4
    found = assembler.feed(part(2), 4)
    assert found is not None and found.rows.column("event_time").to_pylist() == [1000 * (S + number) for number in range(3)] and assembler.first == 0


@pytest.mark.parametrize("log", ["zzzz", "b", LOG.upper(), f"{LOG}0", LOG[:-1], f"{TIME + LOG_AHEAD_MS + 1:011x}-0123abcd", f"{LOG}\n"])
def test_a_log_that_clean_cannot_have_begun_is_refused(log: str) -> None:
    frame = Frame(log, 0, 1, (), empty(TICKS_SCHEMA))
    with pytest.raises(FrameError, match="log"):
        received(encode(frame), TICKS_SCHEMA, TIME)
    own = replace(frame, log=LOG)
    assert received(encode(own), TICKS_SCHEMA, TIME - LOG_AHEAD_MS) == own
