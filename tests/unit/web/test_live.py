from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockstream.errors import FrameError
from stockstream.records import WINDOWS_SCHEMA, Closing
from stockstream.transforms.frames import Frame
from stockstream.transforms.timing import WINDOW_S
from stockstream.web.answers import WindowRow
from stockstream.web.events import short_columns, to_json
from stockstream.web.live import Live


def answered(value: Any) -> Any:
    return msgspec.to_builtins(value)


def test_the_last_row_is_answered_whole(make: Any) -> None:
    live, row = Live(), make.row(vwap_5m=10.5, bid=10.9)
    live.frame(0, make.frame([row]))
    detail = live.symbol("ABC")
    assert detail is not None
    assert answered(detail.last) == row
    assert answered(detail.window_5m) == {name: row[name] for name in WINDOWS_SCHEMA.names if name.endswith("_5m")}
    assert live.symbol("abc") is None


def test_a_column_added_to_windows_is_answered_too() -> None:
    assert list(WindowRow.__struct_fields__) == WINDOWS_SCHEMA.names


def test_the_highest_offset_counts_whatever_the_order(make: Any) -> None:
    s = make.second
    rows = [make.row(second=s, offset=10, close=1.0), make.row(second=s + 1, offset=11, close=2.0), make.row(second=s, offset=12, close=3.0, revised=True)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        live = Live()
        for i in order:
            live.frame(0, make.frame([rows[i]]))
        assert [bar.close for bar in live.bars("ABC", 1, 10).items] == [3.0, 2.0]
        assert live.symbol("ABC").last.close == 2.0  # type: ignore[union-attr]
    live = Live()
    live.frame(0, make.frame(rows))
    assert [bar.close for bar in live.bars("ABC", 1, 10).items] == [3.0, 2.0]


def test_a_late_row_is_a_row(make: Any) -> None:
    """A symbol that is behind its source has its bars, its last row and its place in the list."""
    live, s = Live(), make.second
    frames = [[make.row("X", second=at, offset=at - s), make.row("SLOW", second=at - 2, offset=at - s, quality="partial,late")] for at in range(s, s + 5)]
    for rows in frames:
        live.frame(0, make.frame(rows))
    assert [bar.second for bar in live.bars("SLOW", 1, 10).items] == list(range(s - 2, s + 3))
    detail = live.symbol("SLOW")
    assert detail is not None and detail.last is not None and (detail.last.second, detail.last.quality) == (s + 2, "partial,late")
    live.frame(0, make.frame([make.row("SLOW", second=s + 1, offset=9, quality="late", close=7.0)]))
    detail = live.symbol("SLOW")
    assert detail is not None and detail.last is not None and detail.last.second == s + 2 and live.bars("SLOW", 1, 10).items[-2].close == 7.0


def test_an_alert_that_a_late_row_updates_is_shown_as_updated(make: Any) -> None:
    live = Live()
    states = [("opened", 10_000, 5), ("updated", 20_000, 15), ("updated", 8_000, 16), ("updated", 20_000, 15), ("closed", 80_000, 16), ("updated", 8_000, 16)]
    shown = []
    for state, as_of, offset in states:
        live.alert(make.alert(state=state, as_of=as_of, offset=offset))
        alert = live.alerts(1).items[0]
        shown.append((alert.state, alert.as_of))
    assert shown == [("opened", 10_000), ("updated", 20_000), ("updated", 8_000), ("updated", 8_000), ("closed", 80_000), ("closed", 80_000)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])      # `make` has no state
@given(seed=st.integers(0, 10_000), cut=st.lists(st.integers(0, 120), max_size=8))
def test_any_cutting_into_frames_gives_the_same_bars_as_a_plain_model(make: Any, seed: int, cut: list[int]) -> None:
    draw = random.Random(seed)
    rows = []
    second = make.second
    for offset in range(120):
        second += draw.choice((0, 1, 1, 7, 200))
        rows.append(make.row(draw.choice("ABCD"), max(make.second, second - draw.choice((0, 0, 0, 5))), offset, close=float(offset)))
    live = Live()
    edges = sorted({0, 120, *cut})
    for a, b in pairwise(edges):
        live.frame(0, make.frame(rows[a:b]))
    newest = max(row["second"] for row in rows)
    for symbol in {row["symbol"] for row in rows}:
        best = {}
        for row in rows:
            if row["symbol"] == symbol and row["second"] > newest - WINDOW_S:
                best[row["second"]] = row["close"]
        assert {bar.second: bar.close for bar in live.bars(symbol, 1, 300).items} == best


def test_bars_are_those_of_the_last_300_seconds_by_the_sources_clock(make: Any) -> None:
    live, s = Live(), make.second
    live.frame(0, make.frame([make.row(second=s + i, offset=i) for i in range(320)]))
    assert [bar.second for bar in live.bars("ABC", 1, 300).items] == list(range(s + 20, s + 320))
    live.frame(0, make.frame([], closings=[Closing(400, "simulated.1", s + 319, s + 600)]))
    assert [bar.second for bar in live.bars("ABC", 1, 300).items] == list(range(s + 301, s + 320))
    assert live.symbol("ABC").last.second == s + 319  # type: ignore[union-attr]


def test_bars_of_a_minute(make: Any) -> None:
    live, s = Live(), make.second // 60 * 60
    rows = [make.row(second=s + i, offset=i, open=i + 1.0, high=i + 2.0, low=i + 0.5, close=i + 1.5, volume=10, ticks=1, quotes=2) for i in range(90)]
    rows[0] |= {"open": None, "high": None, "low": None, "close": None, "volume": 0}
    live.frame(0, make.frame(rows))
    first, second = live.bars("ABC", 60, 10).items
    assert answered(first) == {
        "second": s, "open": 2.0, "high": 61.0, "low": 1.5, "close": 60.5, "volume": 590, "ticks": 60, "quotes": 120, "seconds": 60,
    }  # fmt: skip
    assert (second.second, second.open, second.close, second.seconds) == (s + 60, 61.0, 90.5, 30)
    quiet = Live()
    quiet.frame(0, make.frame(rows[:1]))
    assert (quiet.bars("ABC", 60, 1).items[0].open, quiet.bars("ABC", 60, 1).items[0].quotes) == (None, 2)


def test_shares_with_decimals_are_exact_and_whole_ones_have_none(make: Any) -> None:
    live, s = Live(), make.second // 60 * 60
    live.frame(0, make.frame([make.row(second=s + i, offset=i, volume=(0.1, 0.2)[i], volume_5m=5_000.0, gap_s=(None, 1_200)[i]) for i in range(2)]))
    live.latest(json.dumps(make.row("NEW", volume=300, volume_5m=0.0387)).encode())
    (minute,) = live.bars("ABC", 60, 10).items
    assert minute.volume == 0.3 != 0.1 + 0.2
    text = json.dumps([msgspec.to_builtins(live.symbol(symbol)) for symbol in ("ABC", "NEW")])
    for part in ('"volume_5m": 5000,', '"volume": 0.2,', '"volume": 300,', '"volume_5m": 0.0387,', '"gap_s": 1200,', '"accrued_5m": 0,'):
        assert part in text, part
    assert short_columns(live.summary_columns(["ABC", "NEW"]))["volume_5m"] == [5_000, 0.0387]
    assert to_json(live.symbols(5)).count(b'"volume_5m":5000,') == 1


def test_bars_page_backwards(make: Any) -> None:
    live, s = Live(), make.second
    live.frame(0, make.frame([make.row(second=s + i, offset=i) for i in range(10)]))
    page = live.bars("ABC", 1, 4)
    seconds = [bar.second for bar in page.items]
    while page.next is not None:
        page = live.bars("ABC", 1, 4, int(page.next))
        seconds = [bar.second for bar in page.items] + seconds
    assert seconds == list(range(s, s + 10))


def test_a_newer_log_forgets_its_partition_only_and_an_older_one_is_dropped(make: Any) -> None:
    live = Live()
    live.frame(0, make.frame([make.row("A", offset=50)], log="2"))
    live.frame(1, make.frame([make.row("B", offset=50, partition=1)], log="2"))
    live.frame(0, make.frame([make.row("A", offset=99, close=5.0)], log="1"))
    assert (live.symbol("A").last.offset, live.frames_stale) == (50, 1)  # type: ignore[union-attr]
    live.frame(0, make.frame([make.row("C", offset=1)], log="3"))
    assert [item.symbol for item in live.symbols(10).items] == ["B", "C"]
    live.frame(0, make.frame([make.row("A", second=make.second - 50, offset=2)], log="3"))
    assert [bar.second for bar in live.bars("A", 1, 300).items] == [make.second - 50]


def test_another_source_of_a_symbol_takes_over_by_offset_even_with_older_times(make: Any) -> None:
    live, s = Live(), make.second
    live.frame(0, make.frame([make.row(second=s, offset=1)]))
    live.frame(0, make.frame([make.row(second=s - 100_000, offset=2, source="replay.x")]))
    assert live.symbol("ABC").last.source == "replay.x"  # type: ignore[union-attr]
    assert [bar.second for bar in live.bars("ABC", 1, 300).items] == [s - 100_000]


def test_latest_counts_until_windows_have_a_row(make: Any) -> None:
    live = Live()
    live.latest(msgspec.json.encode(make.row(close=1.0)))
    assert live.symbol("ABC").last.close == 1.0  # type: ignore[union-attr]
    assert live.bars("ABC", 1, 10).items == []
    live.frame(0, make.frame([make.row(second=make.second - 5, offset=1, close=2.0)]))
    live.latest(msgspec.json.encode(make.row(close=3.0)))
    assert live.symbol("ABC").last.close == 2.0  # type: ignore[union-attr]


def test_a_message_that_cannot_be_read_changes_nothing(make: Any) -> None:
    live = Live()
    rows = pa.RecordBatch.from_pylist([make.row()], schema=WINDOWS_SCHEMA)
    for bad in (
        rows.drop_columns(["volume"]),
        rows.set_column(rows.schema.get_field_index("volume"), "volume", pa.array([None], pa.int64())),
        rows.set_column(rows.schema.get_field_index("volume"), "volume", pa.array(["x"])),
        rows.set_column(rows.schema.get_field_index("second"), "second", pa.array([1_700_000_000_000], pa.int64())),
    ):
        with pytest.raises(FrameError):
            live.frame(0, Frame("1", 0, 0, (), bad))
    for feed in (live.latest, live.prediction, live.alert, live.outcomes):
        for data in (b"", b"{", b"5", b'{"symbol": 3}', b'"x"', b"\xff"):
            with pytest.raises(msgspec.MsgspecError):
                feed(data)
    with pytest.raises(msgspec.MsgspecError):
        live.metadata("ABC", b"[1]")
    assert live.symbols(10).items == []


def test_predictions_keep_the_one_furthest_along(make: Any) -> None:
    live = Live()
    live.prediction(make.prediction(as_of=202_000, offset=20))
    live.prediction(make.prediction(as_of=201_000, offset=10))
    live.prediction(make.prediction(as_of=172_000, offset=30))   # of a row that came late
    assert live.predictions(10).items[0].as_of == 202_000
    live.prediction(make.prediction(as_of=50_000, offset=40))    # another source, further along the log
    assert live.predictions(10).items[0].as_of == 50_000
    live.prediction(make.prediction("B"))
    assert [p.symbol for p in live.predictions(1).items] == ["ABC"]
    assert [p.symbol for p in live.predictions(1, after=str(live.predictions(1).next)).items] == ["B"]
    assert [p.symbol for p in live.predictions(1, symbol="B").items] == ["B"]


def test_metadata_comes_and_goes(make: Any) -> None:
    live = Live()
    live.metadata("ABC", b'{"name": "Acme", "currency": "USD", "previous_close": 3.5}')
    assert live.symbol("ABC").metadata == {"name": "Acme", "currency": "USD", "previous_close": 3.5}  # type: ignore[union-attr]
    assert live.symbols(10).items[0].name == "Acme"
    assert live.symbols(10, search="aCM").items and not live.symbols(10, search="xyz").items
    live.metadata("ABC", None)
    assert live.symbol("ABC") is None and live.symbols(10).items == []


def test_symbols_page_in_order(make: Any) -> None:
    live = Live()
    names = [f"S{i:04d}" for i in range(25)]
    live.frame(0, make.frame([make.row(name) for name in reversed(names)]))
    got, after = [], ""
    while True:
        page = live.symbols(10, after)
        got += [item.symbol for item in page.items]
        if page.next is None:
            break
        after = page.next
    assert got == names


def test_alerts_keep_the_newest_state_and_filter(make: Any) -> None:
    live = Live()
    for number in range(5):
        live.alert(make.alert(number, symbol="AB"[number % 2]))
    live.alert(make.alert(0, "closed", "A", as_of=make.second * 1_000 + 90_000))
    live.alert(make.alert(0, "updated", "A", as_of=make.second * 1_000 + 30_000))        # late
    assert [a.opened_at // 1_000 - make.second for a in live.alerts(10).items] == [4, 3, 2, 1, 0]
    assert live.alerts(10).items[-1].state == "closed"
    assert len(live.alerts(10, "open").items) == 4 and len(live.alerts(10, "closed").items) == 1
    assert {a.symbol for a in live.alerts(10, symbol="B").items} == {"B"}
    assert live.alerts(10, rule="price_drop").items == []
    first = live.alerts(2)
    opened_at, _, key = str(first.next).partition(":")
    assert [a.opened_at // 1_000 - make.second for a in live.alerts(10, after=(int(opened_at), key)).items] == [2, 1, 0]
    assert [a.state for a in live.symbol("A").alerts] == ["opened", "opened"]  # type: ignore[union-attr]
    assert live.open_alerts() == 4


def test_alerts_are_bounded_and_open_ones_stay(make: Any) -> None:
    live = Live(max_alerts=3)
    live.alert(make.alert(0))
    for number in range(1, 10):
        live.alert(make.alert(number, "closed"))
    assert [a.opened_at // 1_000 - make.second for a in live.alerts(10).items] == [9, 8, 0]
    assert live.open_alerts() == 1


def test_outcomes_are_counted_once(make: Any) -> None:
    live = Live()
    message = msgspec.json.encode([make.outcome(0.1, 0.2, 1), make.outcome(-0.1, 0.1, 2)])
    live.outcomes(message)
    live.outcomes(message)
    (count,) = live.outcome_counts()
    assert (count.outcomes, count.moved, count.hits) == (2, 2, 1)
    assert count.mean_absolute_error == pytest.approx(0.15)


def test_hits_are_of_prices_that_moved(make: Any) -> None:
    live = Live()
    still = [make.outcome(predicted, 0.0, as_of) for as_of, predicted in enumerate((0.1, -0.1, 0.0), 1)]
    live.outcomes(msgspec.json.encode(still))
    (count,) = live.outcome_counts()
    assert (count.outcomes, count.moved, count.hits) == (3, 0, 0)
    moves = [(0.1, 0.2), (-0.1, -0.2), (0.1, -0.2), (-0.1, 0.2), (0.0, -0.2), (1e-300, 1e-300)]
    live.outcomes(msgspec.json.encode([make.outcome(predicted, realised, as_of) for as_of, (predicted, realised) in enumerate(moves, 10)]))
    (count,) = live.outcome_counts()
    assert (count.outcomes, count.moved, count.hits) == (9, 6, 3)


def test_symbols_are_bounded(make: Any) -> None:
    live = Live(max_symbols=3)
    live.frame(0, make.frame([make.row(f"S{i}", offset=i) for i in range(5)]))
    live.frame(0, make.frame([make.row("S4", offset=9), make.row("S1", offset=9, close=7.0)]))
    assert [item.symbol for item in live.symbols(10).items] == ["S0", "S1", "S2"]
    assert live.symbols_refused == 3
    assert live.symbol("S1").last.close == 7.0  # type: ignore[union-attr]


def test_more_symbols_than_a_block_holds(make: Any) -> None:
    live = Live()
    live.frame(0, make.frame([make.row(f"S{i:05d}", offset=i, close=float(i)) for i in range(2_500)]))
    for i in (0, 1_023, 1_024, 2_499):
        assert live.symbol(f"S{i:05d}").last.close == float(i)  # type: ignore[union-attr]
        assert [bar.close for bar in live.bars(f"S{i:05d}", 1, 9).items] == [float(i)]


def test_changes_are_taken_once(make: Any) -> None:
    live = Live()
    live.frame(0, make.frame([make.row(return_60s=None)]))
    live.prediction(make.prediction())
    live.alert(make.alert())
    changes = live.take_changes()
    assert changes and (changes.symbols, changes.predictions, len(changes.alerts)) == (["ABC"], ["ABC"], 1)
    columns = live.summary_columns(changes.symbols)
    assert columns["price"] == [11.0] and np.isnan(columns["return_60s"][0])
    assert live.prediction_columns(["ABC"])["p_up"] == [0.6]
    assert not live.take_changes()
