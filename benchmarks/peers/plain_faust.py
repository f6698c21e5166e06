# mypy: ignore-errors
# (plain Faust is in an environment of its own)
"""The peers' job in plain Faust: records, a windowed table of one-second bars, and a table of sums; both in memory with a changelog."""

import asyncio
import math
import sys
from datetime import timedelta

import faust
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from rolling import WINDOW_S

SERVERS, INPUT, OUTPUT, APPLICATION, FOLDER = sys.argv[1:6]

app = faust.App(
    APPLICATION, broker=f"kafka://{SERVERS}", store="memory://", topic_partitions=8, datadir=f"{FOLDER}/faust", consumer_auto_offset_reset="earliest",
    broker_max_poll_records=5_000, producer_compression_type="lz4", producer_acks=-1, table_cleanup_interval=30,
)  # fmt: skip


class Tick(faust.Record, serializer="json"):
    symbol: str = ""
    event_time: float = 0.0
    price: float = 0.0
    size: int = 0


source = app.topic(INPUT, key_type=str, value_type=Tick)
target = app.topic(OUTPUT, key_type=str)
bars = app.Table("bars", default=list, partitions=8).tumbling(timedelta(seconds=1), expires=timedelta(seconds=2 * WINDOW_S))
sums = app.Table("sums", default=list, partitions=8)


@app.agent(source)
async def roll(stream):
    async for tick in stream:
        if not tick.symbol:
            continue
        second = int(tick.event_time) // 1000
        held = sums[tick.symbol]
        if not held:
            held = [second, second, 0.0, 0.0, 0, 0.0, 0.0, 0.0]
        if second > held[0]:
            row = close(tick.symbol, held)
            await target.send(key=tick.symbol, value=row)
            held[0] = second
        bar = get(tick.symbol, second)
        if not bar:
            bar = [tick.price, tick.price, tick.price, tick.price, 0, 0.0, 0.0]
        bar = [bar[0], max(bar[1], tick.price), min(bar[2], tick.price), tick.price, bar[4] + tick.size, bar[5] + tick.price * tick.size, 0.0]
        put(tick.symbol, second, bar)
        sums[tick.symbol] = held


def get(symbol, second):
    return bars.table.data.get((symbol, bars.table.window.current(second)))


def put(symbol, second, bar):
    bars.table[symbol, bars.table.window.current(second)] = bar


def close(symbol, held):
    second = held[0]
    opened, high, low, price, volume, notional, _ = get(symbol, second)
    change = math.log(price / held[2]) if held[2] else 0.0
    old = get(symbol, second - WINDOW_S) or [0.0, 0.0, 0.0, 0.0, 0, 0.0, 0.0]
    put(symbol, second, [opened, high, low, price, volume, notional, change])
    held[2] = price
    held[3] += price - old[3]
    held[4] += volume - old[4]
    held[5] += notional - old[5]
    held[6] += change - old[6]
    held[7] += change * change - old[6] * old[6]
    age = second - held[1]
    returns = min(age, WINDOW_S)
    return {
        "symbol": symbol, "second": second, "open": opened, "high": high, "low": low, "close": price, "volume": volume,
        "mean_5m": held[3] / min(age + 1, WINDOW_S), "vwap_5m": held[5] / held[4] if held[4] else None, "volume_5m": held[4],
        "return_std_5m": math.sqrt(max(0.0, (held[7] - held[6] * held[6] / returns) / (returns - 1))) if returns > 1 else None,
    }  # fmt: skip


async def make_changelogs():
    """Makes the tables' topics: where Faust makes them, it may not know of their partitions yet when the first message comes, and then fails at each."""
    admin = AIOKafkaAdminClient(bootstrap_servers=SERVERS)
    await admin.start()
    try:
        names = [f"{APPLICATION}-{table.name}-changelog" for table in (bars.table, sums)]
        await admin.create_topics([NewTopic(name, 8, 1, topic_configs={"cleanup.policy": "compact"}) for name in names])
        while any(not topic["partitions"] for topic in await admin.describe_topics(names)):
            await asyncio.sleep(0.1)
    finally:
        await admin.close()


if __name__ == "__main__":
    asyncio.run(make_changelogs())
    sys.argv = ["faust", "worker", "-l", "warn", "--without-web"]
    app.main()
