"""Foreign JSON: a `Format` is what a format file describes (docs/formats.md).

It names where a message has its events, and has rules that make a trade or a quote of an event, or ignore it. It is pure: the same message gives the same
ticks.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn, Protocol

import msgspec

from stockstream.records import Tick
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_TEXT

MS_OF_UNIT = {"s": Decimal(1000), "ms": Decimal(1), "us": Decimal("0.001"), "ns": Decimal("0.000001")}
"""Milliseconds in one of each."""
_DIVISORS = {"ms": 1, "us": 1_000, "ns": 1_000_000}
NUMBERS = ("price", "size", "bid", "ask", "bid_size", "ask_size", "day_volume")
WHOLE = ("seq", "epoch")
TEXTS = ("exchange", "condition", "trade_id", "currency", "session")
FIELDS = ("symbol", "event_time", *NUMBERS, *WHOLE, *TEXTS, "source")
"""A tick's fields that a rule may name."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_WHOLE = re.compile(r"\d{1,19}")
_HUGE = 10**300
"""No field takes such a number, and a double still does."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

NO_SOURCE = ""
Fault = tuple[str, str]
Note = Callable[[str], None]
"""Called with the kind of each message that is ignored."""


class FormatError(ValueError):
    """A format that cannot be used: one line that names it."""


class _Unusable(Exception):
    """An event that cannot be a tick: reason and detail of its rejection."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.fault: Fault = reason, detail


# -- the file -----------------------------------------------------------------

_Field = str | list[str]


class _Match(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    when: dict[str, Any] = {}
    has: list[str] = []
    lacks: list[str] = []


class _Ignored(_Match, kw_only=True, forbid_unknown_fields=True):
    name: str = ""


_Mapped: Any = msgspec.defstruct("_Mapped", [(name, _Field | None, None) for name in FIELDS], bases=(_Match,), kw_only=True, forbid_unknown_fields=True)


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    source: str = ""
    unit: str = ""
    utc: bool = False
    events: list[str] = []
    ignore: list[_Ignored] = []
    trade: list[_Mapped] = []
    quote: list[_Mapped] = []


# -- where a value is -----------------------------------------------------------


class Event(NamedTuple):
    """An object of a message that may be a trade or a quote, and the objects around it, the outermost first."""

    value: dict[str, Any]
    around: tuple[dict[str, Any], ...]


def _getter(path: str) -> Callable[[Event], Any]:
    """What finds a value: `p` in the event, `a/b` in an object within it, `../p` in the object around it, `/p` in the whole message. None: it is missing."""
    if "/" not in path:
        return lambda event: event.value.get(path)
    steps = path.split("/")
    whole, up = steps[0] == "", 0
    steps = steps[1:] if whole else steps
    while steps and steps[0] == "..":
        up, steps = up + 1, steps[1:]

    def get(event: Event) -> Any:
        objects = (*event.around, event.value)
        found: Any = objects[0] if whole else objects[-1 - up] if up < len(objects) else None
        for step in steps:
            found = found.get(step) if isinstance(found, dict) else None
        return found

    return get


def _walk(value: Any, steps: Sequence[str], around: tuple[dict[str, Any], ...]) -> Iterator[Event]:
    """The objects at the end of a path through objects and arrays of them."""
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, steps, around)
    elif isinstance(value, dict):
        if not steps:
            yield Event(value, around)
        elif steps[0] in value:
            yield from _walk(value[steps[0]], steps[1:], (*around, value))


def _present(value: Any, steps: Sequence[str]) -> bool:
    """Whether a message has this path, though it may end in an empty array."""
    if not steps:
        return isinstance(value, dict | list)
    if isinstance(value, list):
        return any(_present(item, steps) for item in value)
    return isinstance(value, dict) and steps[0] in value and _present(value[steps[0]], steps[1:])


# -- what a value is --------------------------------------------------------------


def _unusable(reason: str, field: str, path: str, value: Any, wanted: str) -> NoReturn:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    raise _Unusable(reason, f"{path} ({field}) must be {wanted}, is {shown}")


def _number(value: Any, field: str, path: str) -> float:
    if type(value) is float or type(value) is int:
        if abs(value) > _HUGE:
            _unusable("out_of_range", field, path, value, f"at most {_HUGE:g}")
        return float(value)
    if not isinstance(value, str) or len(value) > 64 or not _NUMBER.fullmatch(value):
        _unusable("invalid_type", field, path, value, "a number")
    return float(value)


def _whole(value: Any, field: str, path: str) -> int:
    if type(value) is int:
        return value
    if not isinstance(value, str) or not _WHOLE.fullmatch(value):
        _unusable("invalid_type", field, path, value, "a whole number")
    return int(value)


def _text(value: Any, field: str, path: str) -> str:
    if isinstance(value, str):
        return value
    if type(value) is int or type(value) is float:
        return str(value)
    if not isinstance(value, list) or not all(type(item) in (str, int, float) for item in value):
        _unusable("invalid_type", field, path, value, "a text")
    return ",".join(map(str, value))


def _time(value: Any, unit: str, *, utc: bool, path: str) -> int:
    """Epoch milliseconds, what is finer cut off."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            _unusable("invalid_type", "event_time", path, value, "a time in ISO 8601, or a number")
        if time.tzinfo is None:
            if not utc:
                _unusable("invalid_type", "event_time", path, value, "a time with its zone (utc = true in the format: times without one are UTC)")
            time = time.replace(tzinfo=UTC)
        return (time - _EPOCH) // _MS
    if not unit:
        _unusable("invalid_type", "event_time", path, value, "a time in ISO 8601: the format has no unit")
    if type(value) is int:
        return value * 1000 if unit == "s" else value // _DIVISORS[unit]
    if type(value) is float or (isinstance(value, str) and len(value) <= 40):
        milliseconds = Decimal(str(value)) * MS_OF_UNIT[unit]
        if milliseconds < _HUGE:
            return int(milliseconds)
    _unusable("invalid_type", "event_time", path, value, "a time")


# -- rules ------------------------------------------------------------------------


class Rule(Protocol):
    """What is done with the events that it fits."""

    def fits(self, event: Event) -> bool: ...

    def read(self, event: Event, note: Note) -> Tick | None:
        """The event's tick, or None where it is ignored; then `note` is called with its kind. Raises `_Unusable`."""
        ...


class _Fitting:
    """Which events a rule fits."""

    def __init__(self, match: _Match) -> None:
        self._when = [(_getter(path), tuple(value) if isinstance(value, list) else (value,)) for path, value in match.when.items()]
        self._has, self._lacks = [(path, _getter(path)) for path in match.has], [_getter(path) for path in match.lacks]

    def fits(self, event: Event) -> bool:
        for get, values in self._when:
            found = get(event)
            if found is None or isinstance(found, dict | list) or found not in values:
                return False
        has = all(get(event) is not None or path in event.value for path, get in self._has)                # also null
        return has and all(get(event) is None for get in self._lacks)


class _IgnoreRule(_Fitting):
    def __init__(self, match: _Ignored) -> None:
        super().__init__(match)
        self._name = match.name

    def read(self, event: Event, note: Note) -> None:
        """Counts the event by the rule's name, or by what it has where the rule looks."""
        note((self._name or (str(self._when[0][0](event)) if self._when else "ignored"))[:MAX_TEXT])


class _TickRule(_Fitting):
    """Makes a tick of an event."""

    def __init__(self, mapped: Any, *, quote: bool, unit: str, utc: bool) -> None:
        super().__init__(mapped)
        self._quote, self._unit, self._utc = quote, unit, utc
        self._fields = {name: _alternatives(value) for name in FIELDS if (value := getattr(mapped, name)) is not None}

    def read(self, event: Event, note: Note) -> Tick:
        fields: dict[str, Any] = {"source": NO_SOURCE}
        for name, alternatives in self._fields.items():
            value, path = _first(alternatives, event)
            if value is None:
                continue
            if name == "event_time":
                fields[name] = _time(value, self._unit, utc=self._utc, path=path)
            elif name in NUMBERS:
                fields[name] = _number(value, name, path)
            elif name in WHOLE:
                fields[name] = _whole(value, name, path)
            elif name == "symbol":
                if not isinstance(value, str):
                    _unusable("invalid_type", name, path, value, "a text")
                fields[name] = value
            elif (text := _text(value, name, path)) != "":
                fields[name] = text[: MAX_TEXT if name in TEXTS else MAX_SOURCE + 1]
        for name in ("symbol", "event_time") if self._quote else ("symbol", "event_time", "price"):
            if name not in fields:
                paths = " and ".join(path for path, _ in self._fields[name])
                raise _Unusable("missing_field", f"{paths} ({name}) is missing")
        if self._quote:
            fields |= {"price": None, "size": 0}
        return Tick(**fields)


class Matched(NamedTuple):
    """An event, and the rule that is for it; None where no rule is, though others are for other events of its message."""

    event: Event
    rule: Rule | None


def _alternatives(field: _Field) -> list[tuple[str, Callable[[Event], Any]]]:
    """Of several places the first that has a value counts; places with a plus between them are put together, those that have one."""
    return [(path, _together(path) if "+" in path else _getter(path)) for path in ([field] if isinstance(field, str) else field)]


def _first(alternatives: list[tuple[str, Callable[[Event], Any]]], event: Event) -> tuple[Any, str]:
    for path, get in alternatives:
        value = get(event)
        if value is not None and value != "":
            return value, path
    return None, ""


def _together(path: str) -> Callable[[Event], Any]:
    parts = [(part, _getter(part)) for part in path.split("+")]
    last = parts[-1][1]

    def get(event: Event) -> Any:
        if last(event) is None:                                              # an exchange alone is no id
            return None
        return ":".join(_text(value, "part", part) for part, one in parts if (value := one(event)) is not None)

    return get


class Format:
    """The messages of one feed.

    Args:
        name: what the user calls it, and the source of its ticks where neither the file nor an event names one.
        text: of the format file.
        number: of a preset's form; 0 for a file, whose content is its identity.

    Raises:
        FormatError: the text is not a format.
    """

    def __init__(self, name: str, text: str, number: int = 0) -> None:
        try:
            described = tomllib.loads(text)
            file = msgspec.convert(described, _File)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise FormatError(f"format {name}: {error}") from None
        self.name, self.source = name, file.source or name
        self.identity = f"{name}.{number}" if number else hashlib.blake2b(msgspec.json.encode(described, order="deterministic"), digest_size=8).hexdigest()
        _check(name, file)
        self._events = [tuple(path.split("/")) for path in file.events]
        ticks = [(rule, False) for rule in file.trade] + [(rule, True) for rule in file.quote]
        self._rules: list[Rule] = [_IgnoreRule(rule) for rule in file.ignore]
        self._rules += [_TickRule(rule, quote=quote, unit=file.unit, utc=file.utc) for rule, quote in ticks]

    def match(self, message: Any) -> list[Matched] | None:
        """The events of a message, each with the rule that is for it; None where the message is none of this format."""
        if not isinstance(message, dict):
            return None
        for steps in self._events:
            if _present(message, steps):
                found = [Matched(event, self._rule_for(event)) for event in _walk(message, steps, ())]
                known = any(one.rule is not None for one in found) if found else self._rule_for(Event({}, (message,))) is not None
                return found if known else None
        whole = Event(message, ())
        rule = self._rule_for(whole)
        return [Matched(whole, rule)] if rule is not None else None

    def _rule_for(self, event: Event) -> Rule | None:
        return next((rule for rule in self._rules if rule.fits(event)), None)

    def read(self, matched: Matched, prefix: str, note: Note) -> Tick | Fault | None:
        """The tick of an event, why it cannot be one, or None where it is ignored. All sources of ticks are `prefix` or begin with it, unless it is empty."""
        event, rule = matched
        if rule is None:
            return "invalid_shape", f"as {self.name}: no rule is for this event"
        try:
            tick = rule.read(event, note)
        except _Unusable as unusable:
            reason, detail = unusable.fault
            return reason, f"as {self.name}: {detail}"
        if tick is None:
            return None
        if tick.source == NO_SOURCE:
            tick.source = prefix or self.source
        elif prefix and not begins(tick.source, prefix):
            tick.source = f"{prefix}.{tick.source}"
        return tick


def _check(name: str, file: _File) -> None:
    def fail(what: str) -> None:
        raise FormatError(f"format {name}: {what}")

    if file.unit and file.unit not in MS_OF_UNIT:
        fail(f'unit = "{file.unit}" is none of {", ".join(MS_OF_UNIT)}')
    if len(file.source) > MAX_SOURCE:
        fail(f"source must have at most {MAX_SOURCE} characters")
    if not file.trade and not file.quote:
        fail("it needs at least one [[trade]] or [[quote]]")
    for kind, rules, needed in (("trade", file.trade, ("symbol", "event_time", "price")), ("quote", file.quote, ("symbol", "event_time"))):
        for number, rule in enumerate(rules, 1):
            if missing := [field for field in needed if getattr(rule, field) in (None, "", [])]:
                fail(f"[[{kind}]] {number} names no {missing[0]}")
            if kind == "trade" and rule.size is None and rule.day_volume is None:
                fail(f"[[trade]] {number} names neither size nor day_volume")
            if kind == "quote" and rule.bid is None and rule.ask is None:
                fail(f"[[quote]] {number} names neither bid nor ask")
            if kind == "quote" and (wrong := [field for field in ("price", "size") if getattr(rule, field) is not None]):
                fail(f"[[quote]] {number} has a {wrong[0]}: that is a [[trade]]")
    for kind, rules in (("ignore", file.ignore), ("trade", file.trade), ("quote", file.quote)):
        for rule in rules:
            if kind == "ignore" and not rule.when and not rule.has and not rule.lacks:
                fail("an [[ignore]] without when, has and lacks would ignore everything")
            for path, value in rule.when.items():
                for one in value if isinstance(value, list) else [value]:
                    if not isinstance(one, str | int | float | bool):
                        fail(f"when = {{ {path} = ... }} takes a text, a number, a boolean, or an array of them")


def begins(source: str, prefix: str) -> bool:
    """Whether a source is one of those that a prefix names."""
    return source == prefix or source.startswith(f"{prefix}.")
