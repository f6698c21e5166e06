"""Decodes the records of `ticks.raw`: ticks, frames of ticks and punctuations, and what can be used of one that is broken."""

from __future__ import annotations

from typing import Any

import msgspec

from stockstream.records import Punctuation, Tick
from stockstream.transforms.cleaning.formats import Note
from stockstream.transforms.cleaning.raw_format import RawFormat
from stockstream.transforms.cleaning.rejections import decoding_fault

decode_tick = msgspec.json.Decoder(Tick | list[Tick]).decode
_decode_one = msgspec.json.Decoder(Tick).decode
decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_punctuation = msgspec.json.Decoder(Punctuation).decode
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoder raises: for a text that is not UTF-8 an error of Python's, not one of its own."""


def salvage(value: bytes | None, raw_format: RawFormat | None = None, note: Note = lambda kind: None) -> Any:
    """What can be had of a record's value that is not plainly a tick or a frame of ticks: a punctuation, or a frame as [(index, tick or fault)].

    A `Fault` where the whole record cannot be used, None where nothing in it is for `clean`. Of the messages of `raw_format`, `note` is called with the kind
    of each that is ignored.
    """
    if not value:
        return "empty_message", "the record has no value"
    if b'"punctuate"' in value:
        try:
            return _decode_punctuation(value)
        except msgspec.ValidationError as error:
            if not value.lstrip().startswith(b"[") and b'"symbol"' not in value:
                return decoding_fault(error)
        except UNREADABLE:
            pass                                                     # rejected below, as any record
    if raw_format is not None:
        try:
            if (foreign := raw_format.read(value, note)) is not None:
                return foreign or None
        except UNREADABLE:
            pass                                                     # rejected below
    try:
        texts = decode_raw(value)
    except UNREADABLE:
        try:
            decode_tick(value)
        except UNREADABLE as error:
            reason, detail = decoding_fault(error)
            return reason, detail if raw_format is None or reason == "invalid_json" else f"{detail}; nor is it a message of {raw_format.names}"
        return None
    several: list[tuple[int, Any]] = []
    for index, text in enumerate(texts):
        try:
            several.append((index, _decode_one(text)))
        except UNREADABLE as error:
            several.append((index, decoding_fault(error)))
    return several
