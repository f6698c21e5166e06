"""Runs every state machine once on a few made-up ticks, so that a worker pays for lazy imports and first calls before it joins its group."""

from __future__ import annotations

import msgspec

from models import ScoringModel
from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA
from stockstream.transforms import batch, frames
from stockstream.transforms.scoring.scorer import encode_outcomes, encode_predictions

SECONDS = (0, 1, 2, 11, 12, 61, 62, 63, 74)
"""Of the ticks: few, and outcomes of 10 and 60 s come due."""


def warm_up(model: ScoringModel | None = None) -> None:
    """Takes some tens of milliseconds and keeps nothing."""
    encode = msgspec.json.Encoder().encode
    records: list[batch.RawRecord] = []
    for second in SECONDS:
        at = 1_600_000_000_000 + second * 1000
        tick = {
            "symbol": "WARM", "event_time": at, "price": 10.0 + second % 3, "size": 5.5, "bid": 9.9, "ask": 10.1, "bid_size": 1, "ask_size": 1, "seq": second,
        }  # fmt: skip
        records.append(batch.RawRecord(len(records), at, encode(tick)))
    results = batch.run(records, partition=0, partitions=1, model=model, chunk=3)
    for schema, sent in ((TICKS_SCHEMA, results.clean), (WINDOWS_SCHEMA, results.windows)):
        for frame in sent:
            frames.decode(frames.encode(frame), schema).rows.to_pylist()
    for scored in results.scored:
        encode_predictions(scored, 0, {})
        encode_outcomes(scored, 0)
