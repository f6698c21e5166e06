# mypy: ignore-errors
# (QuixStreams is in an environment of its own)
"""The peers' job in QuixStreams: one stateful function, its state in RocksDB with a changelog; a slot a second and the sums, so that each write is small."""

import math
import sys

from quixstreams import Application
from quixstreams.models import TopicConfig
from rolling import WINDOW_S

SERVERS, INPUT, OUTPUT, APPLICATION, FOLDER = sys.argv[1:6]

app = Application(
    broker_address=SERVERS, consumer_group=APPLICATION, auto_offset_reset="earliest", state_dir=f"{FOLDER}/state", commit_interval=5.0, loglevel="WARNING",
    producer_extra_config={"compression.type": "lz4", "linger.ms": 5}, auto_create_topics=True,
)  # fmt: skip
keep = TopicConfig(num_partitions=8, replication_factor=1, extra_config={"retention.ms": str(30 * 86_400_000)})
source = app.topic(INPUT, value_deserializer="json", key_deserializer="str", config=keep)
target = app.topic(OUTPUT, value_serializer="json", config=keep)


def roll(tick, state):
    second, price, size = tick["event_time"] // 1000, tick["price"], tick["size"]
    held = state.get("now")
    row = None
    if held is None:
        held = [second, second, price, price, price, price, 0, 0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0]
    elif second > held[0]:
        row = close(tick["symbol"], held, state)
        for quiet in range(held[0] + 1, second):
            push(held, quiet, held[8], 0, 0.0, state)
        held[0], held[2:8] = second, [price, price, price, price, 0, 0.0]
    held[3], held[4], held[5] = max(held[3], price), min(held[4], price), price
    held[6] += size
    held[7] += price * size
    state.set("now", held)
    return row


def push(held, second, price, volume, notional, state):
    change = math.log(price / held[8]) if held[8] else 0.0
    held[8] = price
    slot = str(second % WINDOW_S)
    old = state.get(slot) if second - held[1] >= WINDOW_S else None
    old = old or (0.0, 0, 0.0, 0.0)
    state.set(slot, (price, volume, notional, change))
    held[9] += price - old[0]
    held[10] += volume - old[1]
    held[11] += notional - old[2]
    held[12] += change - old[3]
    held[13] += change * change - old[3] * old[3]


def close(symbol, held, state):
    push(held, held[0], held[5], held[6], held[7], state)
    age = held[0] - held[1]
    returns = min(age, WINDOW_S)
    return {
        "symbol": symbol, "second": held[0], "open": held[2], "high": held[3], "low": held[4], "close": held[5], "volume": held[6],
        "mean_5m": held[9] / min(age + 1, WINDOW_S), "vwap_5m": held[11] / held[10] if held[10] else None, "volume_5m": held[10],
        "return_std_5m": math.sqrt(max(0.0, (held[13] - held[12] * held[12] / returns) / (returns - 1))) if returns > 1 else None,
    }  # fmt: skip


frame = app.dataframe(source)
frame = frame.filter(lambda tick: "symbol" in tick)
frame = frame.apply(roll, stateful=True)
frame = frame.filter(lambda row: row is not None)
frame = frame.to_topic(target)

if __name__ == "__main__":
    app.run()
