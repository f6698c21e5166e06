"""A market crash: every symbol of one partition falls at once, twice, with a kill -9 in between, while the symbols of the other partitions tick as ever."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from stockstream.transforms.partitioning import home_partition
from tests.faults.line import Line
from tests.faults.verdict import Verdict
from tests.faults.workers import PATIENCE, Failed, wait_until
from tests.kafka import Cluster

if TYPE_CHECKING:
    from tests.faults.cases import Scale

SOURCE = "storm"
BEHIND_S = 1_200
"""The storm's event times lie so far in the past. Its source has a clock of its own, so the case need not wait for its minutes to pass."""
TICKS_OF_A_RECORD = 2_000
"""About 200 kB of JSON: a raw record must stay below 1 MB."""
STEADY_S = (0, 60, 130)
"""Event seconds of the ticks at a steady price: both rules need a past, `price_drop` 60 s and `volume_spike` 120 s."""
FALLS_S = (135, 270)
"""Event seconds in which the two falls begin; each lasts FALL_S. By the second the alerts of the first have closed."""
FALL_S = 55
END_S = 420
SLACK_S = 2.0
"""So much later than usual may the rows of other symbols come."""
MAX_EXITS = 2
"""Ends of workers by themselves that a starved machine explains (the fence); one that comes back to the same place ends again and again."""

_encode = msgspec.json.Encoder().encode
Message = tuple[int, bytes | None]


class Storm:
    """The ticks of `symbols` symbols of one partition: a steady price, two falls by 2 % on a thousand times the volume, a calm end."""

    def __init__(self, symbols: int, partition: int, partitions: int, now_s: int) -> None:
        self.partition = partition
        self.begin_s = now_s - BEHIND_S
        self.names: list[str] = []
        number = 0
        while len(self.names) < symbols:
            name = f"STORM{number:06d}"
            if home_partition(name, partitions) == partition:
                self.names.append(name)
            number += 1

    def steady(self) -> list[Message]:
        """The past that the rules need."""
        return [message for second in STEADY_S for message in self._messages(second, 0, 100.0, 10)]

    def fall(self, number: int) -> list[Message]:
        """The first (0) or the second (1) fall."""
        return self._messages(FALLS_S[number], FALL_S, round(100 * 0.98 ** (number + 1), 4), 10_000 * (number + 1))

    def calm(self) -> list[Message]:
        """A later tick of each symbol, which closes all alerts."""
        return self._messages(END_S, 0, 96.0, 10)

    def _messages(self, second: int, spread_s: int, price: float, size: int) -> list[Message]:
        """A tick of each symbol, in order of their times, as records of many. No second is in two records: a pause between them may close it."""
        records = -(-len(self.names) // TICKS_OF_A_RECORD)
        messages: list[Message] = []
        for record in range(records):
            names = self.names[record * TICKS_OF_A_RECORD : (record + 1) * TICKS_OF_A_RECORD]
            first, last = (second + spread_s * at // records for at in (record, record + 1))
            span = max(1, last - first)
            at_ms = [(self.begin_s + first + number * span // len(names)) * 1000 for number in range(len(names))]
            ticks = [{"symbol": name, "source": SOURCE, "event_time": at, "price": price, "size": size} for name, at in zip(names, at_ms, strict=True)]
            messages.append((self.partition, _encode(ticks)))
        return messages


def storm(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """15. All symbols of one partition open alerts at once, twice, with a kill -9 in between; the others' rows come at their usual time."""
    rng = random.Random(seed)
    symbols = scale(3_000, 20_000)
    with Line(cluster, seed, **{"session_s": 8.0} | scale.line) as line:
        line.begin(history_s=60)
        partition = rng.randrange(line.settings.partitions)
        made = Storm(symbols, partition, line.settings.partitions, int(time.time()))
        usual = _delay_while(line, partition, lambda: time.sleep(scale(5, 20)))
        _send(line, made.steady(), 0.0)
        delays = []
        for number in (0, 1):
            delays.append(_delay_while(line, partition, lambda number=number: _fall(line, made, number, scale)))  # type: ignore[misc]
            if number == 0:
                victim = rng.choice(line.workers)
                victim.kill()
                line.wait_for_windows(timeout_s=90)
                victim.wait_ready(90)
                time.sleep(line.settings.session_timeout_s)              # until then the group may wait for the one that was killed
                line.wait_for_windows(timeout_s=90)
                line.count("kill -9")
        _send(line, made.calm(), 0.1)
        line.count("alerts opened at once", 4 * symbols)
        scale.say(
            f"  {symbols} symbols of partition {partition} opened {2 * symbols} alerts, twice; rows of the other partitions came at most "
            f"{usual:.1f} s after their second before, {delays[0]:.1f} s and {delays[1]:.1f} s during the falls"
        )
        if max(delays) > usual + PATIENCE * SLACK_S:
            raise Failed(f"rows of other partitions came {max(delays):.1f} s after their second, usually {usual:.1f} s; logs in {line.folder}")
        return line.check(line.finish(timeout_s=90, view_partitions={p for p in range(line.settings.partitions) if p != partition}))


def _fall(line: Line, made: Storm, number: int, scale: Scale) -> None:
    """Sends a fall and returns once every symbol has its two alerts."""
    wanted = 2 * (number + 1) * len(made.names)
    messages = made.fall(number)
    _send(line, messages, scale(3, 60) / len(messages))

    def opened() -> bool:
        exits = [(worker.name, status) for worker in line.workers for status, _ in worker.exits if status != -9]
        if len(exits) > MAX_EXITS:
            raise Failed(f"workers ended by themselves {len(exits)} times during the storm: {exits[-1]}; logs in {line.folder}")
        line.observer.read()
        return sum(1 for key in line.observer.published["alerts"] if key[1] == "opened" and str(key[0]).startswith("STORM")) >= wanted

    wait_until(opened, scale(40, 120), f"{wanted} alerts are opened; see {line.folder}", 0.5)


def _send(line: Line, messages: list[Message], pause_s: float) -> None:
    for message in messages:
        line.producer.add([message])
        time.sleep(pause_s)


def _delay_while(line: Line, partition: int, act: Callable[[], None]) -> float:
    """Runs `act`; returns how long after its end a live second of another partition closed meanwhile, at the latest (s, by Kafka's time)."""
    since = time.time()
    act()
    until = time.time()
    line.observer.read()
    others = [(second, at) for p, source, second, at in line.observer.closed_at() if p != partition and source == "fast" and since <= at <= until]
    return max((at - second for second, at in others), default=0.0)
