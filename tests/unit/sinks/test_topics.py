"""Windows, alerts, predictions and outcomes in the archive: every row exactly once, whoever writes it and whatever Kafka has twice."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from stockstream.errors import StockstreamError
from stockstream.sinks.archive.sealing import seal_json, unseal_json
from stockstream.sinks.archive.topics import packing
from stockstream.sinks.archive.topics import positions as positions_module
from stockstream.sinks.archive.topics.positions import Position, all_positions, newest_positions
from stockstream.sinks.archive.topics.writer import ArchivedTopic
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from tests.patience import PATIENCE_S
from tests.seeds import some_quick
from tests.unit.sinks.topic_records import (
    HORIZONS,
    HOUR,
    KAFKA_MS,
    LOG,
    MESSAGES,
    NEXT_LOG,
    T0,
    Topic,
    alert,
    archive,
    frame,
    outcomes,
    parts,
    prediction,
    rows_of,
    stored,
    stored_ids,
    stored_windows,
    window_keys,
    writer,
)  # fmt: skip

TOPICS = ["windows", "alerts", "predictions", "outcomes"]


@pytest.fixture(autouse=True)
def patient_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes longer than a worker has while it ends."""
    monkeypatch.setattr("stockstream.sinks.archive.topics.writer.CLOSE_S", PATIENCE_S)


def positions(store: MemoryStore) -> list[Position]:
    found = list(all_positions(store))
    assert all(isinstance(each, Position) for each in found)
    return [each for each in found if isinstance(each, Position)]


def message(topic: str, number: int, step: int = 1) -> bytes:
    return frame(number, number, step=step) if topic == "windows" else MESSAGES[topic](number, step=step)


def ids(store: MemoryStore, topic: str) -> list[Any]:
    return stored_windows(store) if topic == "windows" else stored_ids(store, topic)


def expected(topic: str, numbers: range, step: int = 1) -> list[Any]:
    if topic == "windows":
        return window_keys(numbers, step=step)
    store = MemoryStore()
    source = Topic()
    source.add(*(message(topic, number, step) for number in numbers))
    archive(source, store, topic)
    assert len(ids(store, topic)) == len(numbers) * {"alerts": 1, "predictions": 2, "outcomes": 2}[topic]
    return ids(store, topic)


def test_rows_have_all_columns_and_their_place() -> None:
    store = MemoryStore()
    for topic in TOPICS:
        source = Topic()
        source.add(message(topic, 0), message(topic, 1))
        archive(source, store, topic)
    windows, alerts, predictions, judged = (stored(store, topic) for topic in TOPICS)
    batch = rows_of([0, 1]).to_pylist()
    for row, want in zip(windows, batch, strict=True):
        assert {name: row[name] for name in want} == want and round(row["time"].timestamp()) == want["second"]
        assert (row["log"], row["record_offset"], row["compaction"]) == ("windows.0000", want["offset"], None)
    assert json.loads(alerts[0]["window"]) == {"close": 1.0, "symbol": "A"} and round(alerts[0]["as_of"].timestamp()) == T0
    assert [(row["record_offset"], row["horizon_s"]) for row in predictions] == [(offset, horizon) for offset in (0, 1) for horizon in HORIZONS]
    assert json.loads(predictions[0]["latency_ms"]) == {"total": 0} and predictions[0]["offset"] == 0
    assert {row["role"] for row in judged} == {"champion"} and round(judged[0]["judged_at"].timestamp() * 1_000) == KAFKA_MS


@pytest.mark.parametrize("topic", TOPICS)
def test_rows_are_written_after_the_flush_time_into_the_folder_of_their_time(topic: str) -> None:
    now = [0.0]
    store, source = MemoryStore(), Topic()
    source.add(*(message(topic, number, step=HOUR) for number in range(3)))
    archived = writer(source, store, topic, flush_s=30, clock=lambda: now[0])
    asyncio.run(archived.step())
    assert store.objects == {} and archived.progress()[0]["read"] == 2 and archived.progress()[0]["offset"] == -1
    now[0] = 150.0
    asyncio.run(archived.step())
    assert ids(store, topic) == expected(topic, range(3), HOUR) and archived.progress()[0]["offset"] == 2
    (position,) = positions(store)
    assert (position.first, position.last, position.records, len(position.objects)) == (0, 2, 3, 1 if topic == "alerts" else 3)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_restart_continues_after_what_is_written(topic: str) -> None:
    store, source = MemoryStore(), Topic()
    for end in (4, 7, 9):
        source.add(*(message(topic, number) for number in range(len(source.records), end)))
        archive(source, store, topic)
    assert ids(store, topic) == expected(topic, range(9))
    assert [(each.number, each.first, each.last) for each in positions(store)] == [(0, 0, 3), (1, 4, 6), (2, 7, 8)]


def test_frames_that_come_again_or_early_count_once() -> None:
    store, source = MemoryStore(), Topic()
    source.add(frame(0, 9), frame(5, 9), frame(15, 19), frame(8, 12), frame(0, 3), frame(13, 19), frame(20, 21))
    for end in range(1, 8):                                              # a worker for each record, and a worker for all
        archive(Topic(source.records[:end]), store, "windows")
    alone = MemoryStore()
    archive(source, alone, "windows")
    assert stored_windows(store) == stored_windows(alone) == window_keys(range(22))
    assert positions(store)[-1].end.covered == positions(alone)[-1].end.covered == ((0, 21),)
    assert sum(each.repeated for each in positions(store)) == sum(each.repeated for each in positions(alone)) == 2 * (5 + 2 + 4 + 5)


def test_a_new_raw_log_begins_its_own_offsets_and_ends_the_older_one() -> None:
    store, source = MemoryStore(), Topic()
    source.add(frame(0, 4), frame(0, 2, NEXT_LOG, step=2), frame(5, 9), frame(3, 3, NEXT_LOG, step=2))
    archive(source, store, "windows")
    assert stored_windows(store) == sorted(window_keys(range(5)) + window_keys(range(4), step=2), key=lambda key: (key[2], key[0]))


def test_a_frame_in_parts_is_archived_with_its_last_part() -> None:
    first, *others = parts(0, 5)
    store, source = MemoryStore(), Topic()
    source.add(frame(0, 2), first)
    archived = writer(source, store, "windows")
    asyncio.run(archived.step())
    asyncio.run(archived.step())
    assert stored_windows(store) == window_keys(range(3)) and positions(store)[-1].last == 0
    source.add(*others, frame(6, 6))
    archive(source, store, "windows")                                    # another worker, which has not seen the first part
    assert len(stored_windows(store)) == 6 + 8 + 2
    asyncio.run(archived.step())
    asyncio.run(archived.step())
    assert len(stored_windows(store)) == 6 + 8 + 2


def test_a_frame_whose_other_parts_never_come_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sinks.archive.topics.frames.ABANDONED", 5)
    store, source = MemoryStore(), Topic()
    source.add(parts(0, 900)[0], *(frame(number, number) for number in range(4)))
    archive(source, store, "windows")
    assert stored_windows(store) == []
    source.add(frame(4, 4))
    archive(source, store, "windows")
    assert stored_windows(store) == window_keys(range(5))


@pytest.mark.parametrize("topic", ["alerts", "predictions", "outcomes"])
def test_messages_that_come_again_count_once_whoever_has_seen_the_first(topic: str) -> None:
    order = [0, 1, 2, 1, 2, 3, 9, 4, 5, 9, 4, 3, 6, 7, 0, 8, 9]
    store, source = MemoryStore(), Topic()
    archived = writer(source, store, topic)
    for number in order:
        source.add(message(topic, number, step=700))                     # six to an hour
        if number % 3:
            asyncio.run(archived.step())
        else:
            archive(source, store, topic)
    alone = MemoryStore()
    archive(source, alone, topic)
    archive(source, store, topic)
    assert ids(store, topic) == ids(alone, topic) == expected(topic, range(10), 700)
    repeated = sum(each.repeated for each in positions(store))
    assert repeated == sum(each.repeated for each in positions(alone)) == (len(order) - 10) * (1 if topic == "alerts" else 2)


def test_a_repetition_is_found_beyond_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sinks.archive.topics.repeated.REMEMBERED", 10)
    store, source = MemoryStore(), Topic()
    archived = writer(source, store, "predictions")
    for number in range(40):
        source.add(prediction(number), prediction(number, "B"))
        asyncio.run(archived.step())
    source.add(prediction(3), prediction(38, "B"), prediction(40), prediction(20, "C"))
    asyncio.run(archived.step())
    assert len(stored_ids(store, "predictions")) == 2 * (80 + 2) and positions(store)[-1].repeated == 4


def test_the_first_of_repeated_predictions_counts() -> None:
    store, source = MemoryStore(), Topic()
    source.add(prediction(0, made_at=KAFKA_MS + 1), prediction(0, made_at=KAFKA_MS + 2))
    archive(source, store, "predictions")
    assert {json.loads(row["latency_ms"])["total"] for row in stored(store, "predictions")} == {1}


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_that_is_created_again_begins_anew_and_repeats_nothing(topic: str, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    source = Topic()
    source.add(*(message(topic, number) for number in range(5)))
    archive(source, store, topic)
    for count in (3, 12):
        again = Topic()
        again.add(*(message(topic, number) for number in range(count)), life=count)
        archive(again, store, topic)
    assert ids(store, topic) == expected(topic, range(12))
    begun = 2 if topic == "windows" else 3                               # three frames that are all known already need no position
    assert [(each.life, each.number, each.first) for each in positions(store)] == [(life, 0, 0) for life in range(begun)]
    assert "begins anew" in caplog.text
    again.add(message(topic, 12), life=12)
    archive(again, store, topic)
    assert newest_positions(store, topic, 0)[-1].number == 1 and ids(store, topic) == expected(topic, range(13))


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_that_lost_records_while_a_worker_reads_it(topic: str) -> None:
    """As after an unclean election: other records have the offsets of lost ones."""
    store, source = MemoryStore(), Topic()
    source.add(*(message(topic, number) for number in range(8)))
    archived = writer(source, store, topic)
    for _ in range(2):
        asyncio.run(archived.step())
    source.records = source.records[:5]
    source.add(message(topic, 7), message(topic, 6), life=1)
    for _ in range(3):
        asyncio.run(archived.step())
    source.add(*(message(topic, number) for number in range(5, 12)), life=1)
    for _ in range(3):
        asyncio.run(archived.step())
    assert ids(store, topic) == expected(topic, range(12))


def test_two_clusters_that_write_to_one_archive_continue_each_its_own() -> None:
    store = MemoryStore()
    sources = [Topic(), Topic()]
    for number in range(6):
        which = number % 2
        sources[which].add(prediction(number), life=1 + which)
        archive(sources[which], store, "predictions")
    assert [row["log"] for row in stored(store, "predictions")] == ["predictions.0000"] * 6 + ["predictions.0001"] * 6
    assert len(positions(store)) == 6 and stored_ids(store, "predictions") == expected("predictions", range(6))


@pytest.mark.parametrize("topic", TOPICS)
def test_what_retention_deleted_is_recorded(topic: str, caplog: pytest.LogCaptureFixture) -> None:
    store, source = MemoryStore(), Topic()
    source.add(*(message(topic, number) for number in range(3)))
    archive(source, store, topic)
    source.add(*(message(topic, number) for number in range(3, 10)))
    source.begin = 7
    archive(source, store, topic)
    assert sorted(ids(store, topic)) == sorted(expected(topic, range(3)) + expected(topic, range(7, 10)))
    assert [(each.first, each.last, each.records, each.missing) for each in positions(store)] == [(0, 2, 3, ()), (3, 9, 3, ((3, 6),))]
    assert "retention deleted records 3 to 6" in caplog.text


@pytest.mark.parametrize("topic", TOPICS)
def test_the_objects_of_a_writer_that_crashed_after_its_position_are_completed(topic: str) -> None:
    store, source = MemoryStore(), Topic()
    source.add(*(message(topic, number, 1_300) for number in (0, 1, 2)))
    archive(source, store, topic)
    source.add(*(message(topic, number, 1_300) for number in (2, 3, 4, 5, 1, 6)))
    archive(source, store, topic)
    whole = dict(store.objects)
    last = positions(store)[-1]
    for removed in last.objects:
        del store.objects[removed]
    source.add(message(topic, 7, 1_300))
    archive(source, store, topic)
    assert {name: store.objects[name] for name in whole} == whole        # the same bytes
    assert ids(store, topic) == expected(topic, range(8), 1_300) and not any(each.missing for each in positions(store))


def test_objects_that_cannot_be_completed_any_more_are_recorded_as_missing(caplog: pytest.LogCaptureFixture) -> None:
    store, source = MemoryStore(), Topic()
    source.add(*(frame(number, number) for number in range(5)))
    archive(source, store, "windows")
    for removed in positions(store)[-1].objects:
        del store.objects[removed]
    source.add(frame(5, 5))
    source.begin = 3
    archive(source, store, "windows")
    assert positions(store)[-1].missing == ((0, 4),) and "cannot be archived" in caplog.text
    assert stored_windows(store) == window_keys(range(3, 6))


def test_a_writer_that_was_overtaken_continues_from_the_others_position() -> None:
    store, source = MemoryStore(), Topic()
    source.add(frame(0, 0), frame(1, 1))
    slow = writer(source, store, "windows")
    asyncio.run(slow.step())
    source.add(frame(2, 2))
    slow = writer(source, store, "windows", flush_s=1_000)
    asyncio.run(slow.step())                                             # read, not written
    source.add(frame(3, 3))
    archive(source, store, "windows")
    source.add(frame(4, 4))
    asyncio.run(slow.close())
    assert stored_windows(store) == window_keys(range(5)) and [each.last for each in positions(store)] == [1, 3, 4]


@pytest.mark.parametrize("seed", some_quick(range(5), 1))
@pytest.mark.parametrize("topic", ["windows", "predictions", "outcomes", "alerts"])
def test_writers_without_knowledge_of_each_other_write_every_row_once(topic: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers own the partition at the same time; they crash, the store fails and loses answers, Kafka is away at times, and much comes twice.

    Positions are packed meanwhile, and what packing deletes some workers create again.
    """
    chance = random.Random(seed)
    for module in (positions_module, packing):
        monkeypatch.setattr(module, "IN_A_PACK", 3)
    store = MemoryStore(seed)
    values: list[bytes] = []
    at = 0
    while at < 40:
        if topic == "windows" and chance.random() < 0.15:
            values += parts(at, at)
        else:
            values.append(message(topic, at, step=97))
        at += 1
        if chance.random() < 0.25:
            at = max(0, at - chance.randrange(6))                        # a worker crashed: another one repeats
        if chance.random() < 0.1:
            values.append(message(topic, min(at + chance.randrange(3), 39), step=97))   # a worker that lost its partition
    whole = Topic()
    whole.add(*values)
    sources = [Topic(largest=chance.choice((3, 10, 100))) for _ in range(3)]
    alone = MemoryStore()
    archive(whole, alone, topic)

    async def main() -> None:
        writers = [writer(source, store, topic) for source in sources]
        for end in range(5, len(values) + 5, 5):
            for source in sources:
                source.records, source.down = whole.records[:end], chance.random() < 0.2
            store.failing = chance.choice((0.0, 0.1))
            for _ in range(4):
                number = chance.randrange(3)
                with suppress(StockstreamError):
                    await writers[number].step(final=chance.random() < 0.5)
                if chance.random() < 0.2:
                    writers[number] = writer(sources[number], store, topic)
                if chance.random() < 0.2:
                    with suppress(StockstreamError):
                        list(packing.pack_positions(store, None))
        store.failing = 0.0
        for number, source in enumerate(sources):
            source.records, source.down = whole.records, False
            for _ in range(3):
                await writers[number].step()
            await writers[number].close()

    asyncio.run(main())
    assert not any(result.faults for result in packing.pack_positions(store, None)) and list(store.list("positions/packed/"))
    assert ids(store, topic) == ids(alone, topic)
    assert len(set(ids(store, topic))) == len(ids(store, topic))
    found = positions(store)
    assert found[0].first == 0 and {each.life for each in found} == {0}
    assert topic == "windows" or found[-1].last == whole.records[-1].offset         # frames at the end that are all known need no position
    assert all(after.first == before.last + 1 and after.number == before.number + 1 for before, after in pairwise(found))
    listed = {name: rows for each in found for name, rows in each.objects.items()}
    assert sorted(listed) == sorted(store.list("processed/"))
    report = check(store)
    assert report.faults == [] and report.topics[topic].rows == len(ids(store, topic)) and not report.topics[topic].unwritten


@pytest.mark.parametrize("topic", TOPICS)
def test_records_that_are_no_messages_are_counted_and_passed(topic: str) -> None:
    good = [message(topic, number) for number in range(3)]
    bad: list[bytes | None] = [None, b"", b"{", b"[1]", b"\xff\xfe", b"{}", b"null", b"[" * 100_000, good[0][:-9]]
    if topic == "predictions":
        for name, value in (
            ("as_of", -1), ("as_of", 1 << 60), ("offset", 1 << 63), ("price", 1e301), ("horizons", []), ("id", ""), ("latency_ms", [1]), ("symbol", "\ud800"),
        ):  # fmt: skip
            bad.append(json.dumps(json.loads(good[0]) | {name: value}).encode())
    if topic == "alerts":
        bad += [good[0].replace(b"opened", b"broken"), json.dumps(json.loads(good[0]) | {"window": 3}).encode()]
    if topic == "outcomes":
        bad.append(json.dumps([*json.loads(good[0]), {"id": "x"}]).encode())
    skipped: list[Any] = []
    store, source = MemoryStore(), Topic()
    source.add(good[0], *bad, *good[1:])
    archive(source, store, topic, skipped)
    assert [offset for _, _, offset, _ in skipped] == list(range(1, 1 + len(bad))) and {name for name, *_ in skipped} == {topic}
    assert ids(store, topic) == expected(topic, range(3)) and sum(each.skipped for each in positions(store)) == len(bad)


def test_an_empty_array_of_outcomes_and_a_frame_without_new_rows_bring_no_object() -> None:
    now = [0.0]
    for topic, value in (("outcomes", b"[]"), ("windows", frame(3, 3))):
        store, source = MemoryStore(), Topic()
        source.add(value)
        if topic == "windows":
            archive(source, store, topic)                                # the same frame again has nothing new
            source.add(value)
        before = len(store.objects)
        archived = writer(source, store, topic, clock=lambda: now[0])
        asyncio.run(archived.step())
        asyncio.run(archived.close())
        assert len(store.objects) == before
        now[0] += 3_601
        archived = writer(source, store, topic, clock=lambda: now[0])
        asyncio.run(archived.step())
        now[0] += 3_601
        asyncio.run(archived.step())
        assert len(store.objects) == before + 1 and positions(store)[-1].objects == {}


def test_what_is_read_is_bounded_while_the_store_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sinks.archive.topics.writer.IDLE_S", 0.0)
    store, source = MemoryStore(), Topic(largest=10)
    source.add(*(frame(number, number) for number in range(400)))
    archived = writer(source, store, "windows", archive_buffer_bytes=100_000)
    asyncio.run(archived.step())
    store.down = True
    for _ in range(60):
        with suppress(StockstreamError):
            asyncio.run(archived.step())
    read = archived.progress()[0]
    assert 25_000 <= read["buffered_bytes"] <= 35_000 and 0 < read["read"] < 300 and "down" in read["fault"]
    store.down = False
    asyncio.run(archived.close())
    assert stored_windows(store) == window_keys(range(400)) and archived.progress()[0]["fault"] == ""


def test_an_outage_is_logged_once_and_retried(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sinks.archive.topics.writer.FIRST_RETRY_S", 0.01)
    store, source = MemoryStore(), Topic()
    source.add(*(outcomes(number) for number in range(3)))
    store.down = True

    async def main() -> None:
        archived = writer(source, store, "outcomes")
        task = asyncio.create_task(archived.run())
        await asyncio.sleep(0.2)
        store.down = False
        while not any(name.startswith("processed/") for name in store.objects):
            await asyncio.sleep(0.01)
        await archived.close()
        await asyncio.wait_for(task, 5)

    asyncio.run(main())
    assert len([1 for each in caplog.records if "outcomes waits" in each.message]) == 1
    assert stored_ids(store, "outcomes") == expected("outcomes", range(3))


def test_a_bug_in_one_reading_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store, source = MemoryStore(), Topic()
    source.add(*(frame(number, number) for number in range(3)))
    archived = writer(source, store, "windows")
    asyncio.run(archived.step())
    source.add(*(frame(number, number) for number in range(3, 6)))
    with monkeypatch.context() as patch:
        patch.setattr("stockstream.sinks.archive.topics.frames._stored", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(archived.step())
    asyncio.run(archived.close())
    assert stored_windows(store) == window_keys(range(6))


def test_a_partition_that_is_given_away_is_left_to_its_owner() -> None:
    store, source = MemoryStore(), Topic()
    source.add(alert(0), alert(0, "closed", 60))
    archived: ArchivedTopic = writer(source, store, "alerts", flush_s=1_000)
    asyncio.run(archived.step())
    archived.own([])
    asyncio.run(archived.close())
    assert store.objects == {}
    archive(source, store, "alerts")
    assert len(stored_ids(store, "alerts")) == 2


def test_the_newest_position_is_found_among_many() -> None:
    for count in (1, 2, 3, 7, 8, 1_000, 1_001):
        store, source = MemoryStore(), Topic()
        source.add(*(alert(number) for number in range(2)))
        archive(source, store, "alerts")
        (name,) = store.list("positions/")
        first = unseal_json(name, store.objects[name])
        for number in range(1, count):
            at = name.replace("/000000/", f"/{number // 1000:06d}/").replace("000000000.json", f"{number:09d}.json")
            store.objects[at] = seal_json(at, first.replace(b'"number":0', f'"number":{number}'.encode()))
        (newest,) = newest_positions(store, "alerts", 0)
        assert newest.number == count - 1


def test_records_without_a_topic_life_are_read_from_the_first_that_kafka_has() -> None:
    store, source = MemoryStore(), Topic()
    source.add(*(frame(number, number) for number in range(6)))
    source.begin = 4
    archive(source, store, "windows")
    assert positions(store)[0].first == 4 and stored_windows(store) == window_keys([4, 5]) and positions(store)[0].end.log == LOG


def test_verify_finds_what_is_missing_changed_or_not_listed() -> None:
    store, source = MemoryStore(), Topic()
    for number in range(4):
        source.add(prediction(number), prediction(number, "B"))
        archive(source, store, "predictions")
    whole = dict(store.objects)
    listed = [next(iter(each.objects)) for each in positions(store)]
    written = [name for name in whole if name.startswith("positions/")]
    assert check(store).faults == [] and check(store).topics["predictions"].rows == 16
    for change, faults in (
        ({listed[1]: None}, [f"{listed[1]} is missing; it has 4 rows of records 2 to 3"]),
        ({listed[1]: whole[listed[2]]}, [f"{listed[1]}: its footer and its position differ: records 4 to 5, 4 rows",
                                         f"{listed[1]}: it has rows of records 4 to 5, but its position has 2 to 3"]),
        ({written[1]: None}, ["position 2 of predictions.0000, partition 0: positions 1 to 1 before it are missing", f"{listed[1]}: no position lists it"]),
        ({written[0]: None, written[1]: None, written[2]: None, written[3]: None},
         [f"{listed[0]}: there is no position of log predictions.0000, partition 0"]),
        ({written[3]: b"{"}, [f"{written[3]} cannot be read: Input data was truncated"]),
        ({written[2]: whole[written[2]].replace(b'"first":4', b'"first":5')},
         [f"{written[2]} does not match its checksum: bytes of it have changed",
          "position 3 of predictions.0000, partition 0: positions 2 to 2 before it are missing", f"{listed[2]}: no position lists it"]),
        ({written[2]: seal_json(written[2], unseal_json(written[2], whole[written[2]]).replace(b'"first":4', b'"first":5'))},
         ["position 2 of predictions.0000, partition 0: it begins with record 5, but 4 follows the position before",
          f"{listed[2]}: its footer and its position differ: records 4 to 5, 4 rows",
          f"{listed[2]}: it has rows of records 4 to 5, but its position has 5 to 5"]),
    ):  # fmt: skip
        store.objects = {name: data for name, data in (whole | change).items() if data is not None}
        assert check(store).faults == faults
    store.objects = {name: data for name, data in whole.items() if name != listed[3]}
    report = check(store)                                                # its writer crashed, or creates it now
    assert report.faults == [] and report.topics["predictions"].unwritten == 4 and report.topics["predictions"].rows == 12


def test_a_position_whose_bytes_are_no_text_is_a_fault_and_no_crash() -> None:
    store = MemoryStore()
    name = "positions/alerts-00000/0000/000000/000000000.json"
    store.create(name, b'{"topic":"alert\xff\xfe"}')
    assert [found for found in all_positions(store) if isinstance(found, str) and found.startswith(f"{name} cannot be read")]
    assert any(fault.startswith(f"{name} cannot be read") for fault in check(store).faults)
