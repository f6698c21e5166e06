"""The foreign messages of a log: the formats that STOCKSTREAM_RAW_FORMAT names, and the ticks that they find in a record of `ticks.raw`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from stockstream.records import Tick
from stockstream.transforms.cleaning.formats import Fault, Format, FormatError, Matched, Note, begins
from stockstream.transforms.cleaning.limits import MAX_SOURCE
from stockstream.transforms.cleaning.presets import PRESETS

Read = Callable[[str], str]
"""The text of a format file. Raises `OSError`."""


@cache
def preset(name: str) -> Format:
    """A format that stockstream brings. Raises `KeyError`."""
    number, text = PRESETS[name]
    return Format(name, text, number)


def open_format(text: str, read: Read) -> Format:
    """The format of this name, or of the file of this name. Raises `FormatError`."""
    if text in PRESETS:
        return preset(text)
    names = ", ".join(PRESETS)
    if not text.endswith(".toml"):
        raise FormatError(f"{text!r} is neither one of the formats {names} nor a file that ends in .toml")
    try:
        content = read(text)
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"format file {text} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return Format(re.split(r"[/\\]", text)[-1].removesuffix(".toml"), content)


@dataclass(frozen=True, slots=True)
class _Entry:
    prefix: str
    """What the sources of its ticks are, or begin with; empty: the format's own."""
    format: Format


class RawFormat:
    """The formats of the foreign messages of a log: of several the first that knows a message counts.

    `identity` is what their mapping depends on: it belongs to the log.
    """

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self._entries = tuple(entries)
        self.identity = ",".join(f"{one.prefix or one.format.source}={one.format.identity}" for one in entries)
        self.names = " or ".join(dict.fromkeys(one.format.name for one in entries))
        """The formats, in words."""

    @classmethod
    def of(cls, one: Format, source: str = "") -> RawFormat:
        """One format; `source` is that of its ticks, the format's own where it is empty."""
        return cls([_Entry(source, one)])

    @classmethod
    def parse(cls, text: str, read: Read) -> RawFormat | None:
        """From `polygon`, `acme.toml` or `us=polygon,crypto=binance`; None where the text is empty. Raises `FormatError`, which is a `ValueError`."""
        entries: list[_Entry] = []
        for part in (part.strip() for part in text.split(",") if text.strip()):
            prefix, equals, name = (piece.strip() for piece in part.partition("="))
            prefix, name = (prefix.rstrip("."), name) if equals else ("", prefix)
            if not name or (equals and not prefix):
                raise FormatError(f"{part!r} is neither a format, as in polygon, nor SOURCE=FORMAT, as in us=polygon")
            if len(prefix) > MAX_SOURCE:
                raise FormatError(f"{prefix!r}: a source has at most {MAX_SOURCE} characters")
            entries.append(_Entry(prefix, open_format(name, read)))
        sources = [one.prefix or one.format.source for one in entries]
        if twice := [source for source in sources if sources.count(source) > 1]:
            raise FormatError(f"the source {twice[0]} is given twice")
        return cls(entries) if entries else None

    def read(self, value: bytes, note: Note) -> list[tuple[int, Tick | Fault]] | None:
        """The ticks of a record's value and the faults of what cannot be one, each with its place among the events; None where nothing in it is foreign.

        `note` is called with the kind of each event that is ignored. Raises what the decoder raises for a value that is not JSON.
        """
        message = msgspec.json.decode(value)
        found: list[tuple[int, Tick | Fault]] = []
        place, foreign = 0, False
        for one in message if isinstance(message, list) else (message,):
            entry, events = self._known(one)
            if entry is None:
                found.append((place, self._own(one)))
                place += 1
                continue
            foreign = True
            if not events:
                note("empty")
            for matched in events:
                tick = entry.format.read(matched, entry.prefix, note)
                if tick is not None:
                    found.append((place, tick))
                place += 1
        return found if foreign else None

    def texts(self, value: bytes) -> list[bytes]:
        """The events of a record's value as JSON, in the places that `read` gives them."""
        message = msgspec.json.decode(value)
        out: list[bytes] = []
        for one in message if isinstance(message, list) else (message,):
            entry, events = self._known(one)
            out += [msgspec.json.encode(one)] if entry is None else [msgspec.json.encode(matched.event.value) for matched in events]
        return out

    def _known(self, message: Any) -> tuple[_Entry | None, list[Matched]]:
        for entry in self._entries:
            if entry.prefix and isinstance(message, dict):
                named = message.get("source")
                if isinstance(named, str) and not begins(named, entry.prefix):
                    continue
            events = entry.format.match(message)
            if events is not None:
                return entry, events
        return None, []

    def _own(self, message: Any) -> Tick | Fault:
        try:
            return msgspec.convert(message, Tick)
        except msgspec.ValidationError as error:
            return "invalid_shape", f"neither a tick ({error}) nor a message of {self.names}"

