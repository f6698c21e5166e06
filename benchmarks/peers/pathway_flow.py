# mypy: ignore-errors
# (Pathway is in an environment of its own)
"""The peers' job in Pathway: a stateful reducer a symbol that returns the rows that each minibatch closed.

Its sliding windows would hold each bar 300 times. The state is in memory: Pathway's persistence of a custom reducer pickles all of it for each minibatch.
"""

import json
import sys
from dataclasses import dataclass

import pathway as pw
from rolling import Rolling

SERVERS, INPUT, OUTPUT, APPLICATION, FOLDER = sys.argv[1:6]


class Tick(pw.Schema):
    symbol: str | None
    event_time: int | None
    price: float | None
    size: int | None


@dataclass
class Said:
    """The state, and what the last minibatch closed."""

    state: Rolling
    rows: tuple


@pw.reducers.stateful_many
def roll(rolled, rows):
    state = rolled.value.state if rolled is not None else Rolling()
    out = []
    for (symbol, event_time, price, size), count in sorted(rows, key=lambda row: row[0][1]):
        if count > 0:
            row = state.tick(symbol, event_time, price, size)
            if row is not None:
                out.append(json.dumps(row))
    return pw.wrap_py_object(Said(state, tuple(out)))


settings = {"bootstrap.servers": SERVERS, "group.id": APPLICATION, "auto.offset.reset": "earliest", "compression.type": "lz4"}
ticks = pw.io.kafka.read(settings, INPUT, format="json", schema=Tick, autocommit_duration_ms=100).filter(pw.this.symbol.is_not_none())
rolled = ticks.groupby(pw.this.symbol).reduce(rolled=roll(pw.this.symbol, pw.this.event_time, pw.this.price, pw.this.size))
news = rolled.to_stream().filter(pw.this.is_upsert)
rows = news.select(row=pw.apply_with_type(lambda rolled: rolled.value.rows, tuple[str, ...], pw.this.rolled)).flatten(pw.this.row)
pw.io.kafka.write(rows, settings, OUTPUT, format="plaintext", value=rows.row)

if __name__ == "__main__":
    pw.run(monitoring_level=pw.MonitoringLevel.NONE, terminate_on_error=True)
