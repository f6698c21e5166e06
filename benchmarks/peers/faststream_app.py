# mypy: ignore-errors
# (FastStream is in an environment of its own)
"""The peers' job in FastStream: a batch subscriber. Its state is in memory and lost with the process: it has no place to keep any."""

import asyncio
import sys

import msgspec
import orjson
from faststream import FastStream
from faststream.kafka import KafkaBroker
from rolling import Rolling, ticks_of

SERVERS, INPUT, OUTPUT, APPLICATION = sys.argv[1:5]

broker = KafkaBroker(SERVERS, logger=None, apply_types=False, acks="all", linger_ms=5, max_batch_size=1_000_000, compression_type="lz4")
app = FastStream(broker, logger=None)
states: dict[str, Rolling] = {}


async def raw(message, _=None):
    return message.body


@broker.subscriber(INPUT, batch=True, max_records=5_000, auto_offset_reset="earliest", group_id=APPLICATION, decoder=raw)
async def windows(values):
    out = []
    for item in msgspec.json.decode(b"[" + b",".join(values) + b"]"):
        for tick in ticks_of(item):
            symbol = tick["symbol"]
            state = states.get(symbol)
            if state is None:
                state = states[symbol] = Rolling()
            row = state.tick(symbol, tick["event_time"], tick["price"], tick["size"])
            if row is not None:
                out.append(orjson.dumps(row))
    for start in range(0, len(out), 2_000):                             # a batch holds max_batch_size bytes
        await broker.publish_batch(*out[start : start + 2_000], topic=OUTPUT)


if __name__ == "__main__":
    asyncio.run(app.run())
