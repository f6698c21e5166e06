# mypy: ignore-errors
# (Bytewax is in an environment of its own)
"""The peers' job in Bytewax: one stateful operator a symbol, its state snapshotted to SQLite every 5 seconds of wall time."""

import sys
from datetime import timedelta
from pathlib import Path

import orjson
from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from rolling import Rolling, ticks_of

SERVERS, INPUT, OUTPUT, APPLICATION, FOLDER = sys.argv[1:6]


def ticks(message):
    return [(tick["symbol"], tick) for tick in ticks_of(orjson.loads(message.value))]


def roll(state, tick):
    state = state or Rolling()
    row = state.tick(tick["symbol"], tick["event_time"], tick["price"], tick["size"])
    return state, () if row is None else (row,)


def message(item):
    return KafkaSinkMessage(item[0].encode(), orjson.dumps(item[1]))


flow = Dataflow("windows")
source = kop.input("in", flow, brokers=[SERVERS], topics=[INPUT], batch_size=5_000)
keyed = op.flat_map("ticks", source.oks, ticks)
rows = op.stateful_flat_map("roll", keyed, roll)
kop.output("out", op.map("rows", rows, message), brokers=[SERVERS], topic=OUTPUT, add_config={"compression.type": "lz4", "linger.ms": "5"})

if __name__ == "__main__":
    store = Path(FOLDER) / "recovery"
    store.mkdir()
    init_db_dir(store, 1)
    cli_main(flow, epoch_interval=timedelta(seconds=5), recovery_config=RecoveryConfig(str(store)))
