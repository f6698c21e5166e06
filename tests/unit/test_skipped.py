from __future__ import annotations

import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stockstream import skipped
from stockstream.limited_log import LOG_EVERY_S, MAX_KINDS, LimitedLog
from stockstream.metrics import Metrics
from stockstream.skipped import DETAIL_LENGTH, Fault, SkippedRecords
from stockstream.transforms.cleaning.limits import MAX_SYMBOL, symbol_fault


def counted(metrics: Metrics) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.labels["topic"], s.labels["reason"]): s.value for f in families for s in f.samples if s.name == "stockstream_records_skipped_total"}


def test_each_record_is_counted_and_a_topic_and_reason_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now, metrics = [100.0], Metrics()
    records = SkippedRecords(metrics, "pre.", lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for offset in range(5):
            records.skip("pre.watchlist", 3, offset, Fault("invalid_json", "x" * 1_000_000))
        records.skip("pre.watchlist", 3, 5, Fault("other", "two\nlines"))
        now[0] += LOG_EVERY_S
        records.skip("pre.watchlist", 4, 6, Fault("invalid_json", "again"))
    assert counted(metrics) == {("watchlist", "invalid_json"): 6, ("watchlist", "other"): 1}
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.startswith("watchlist[3] offset 0 skipped, invalid_json: xxx") and len(first) < DETAIL_LENGTH + 100
    assert second == "watchlist[3] offset 5 skipped, other: two lines"
    assert third == "watchlist[4] offset 6 skipped, invalid_json: again (4 more since the last such line)"


def test_the_memory_of_a_limited_log_is_bounded_and_further_kinds_are_one() -> None:
    log = LimitedLog(lambda: 0.0)
    lines = [log.due("topic", number) for number in range(3 * MAX_KINDS)]
    assert lines == [""] * (MAX_KINDS + 1) + [None] * (2 * MAX_KINDS - 1) and len(log._kinds) == MAX_KINDS + 1


@pytest.mark.parametrize("symbol", ["A", "B/C", "ÄÖ%", "A B", "漢" * MAX_SYMBOL])
def test_what_can_be_a_symbol_has_no_fault(symbol: str) -> None:
    assert symbol_fault(symbol) is None
    symbol.encode()


@pytest.mark.parametrize("symbol", ["", "A" * (MAX_SYMBOL + 1), " A", "A ", "A\n", "A\x00", "\u202eA", "\ud800"])
def test_what_cannot_be_a_symbol_has_its_fault_in_words(symbol: str) -> None:
    assert (symbol_fault(symbol) or "").startswith("symbol must")


def test_a_detail_is_cut() -> None:
    assert skipped.shortened("a" * 10, 10) == "a" * 10 and skipped.shortened("a" * 11, 10) == "a" * 7 + "..."
