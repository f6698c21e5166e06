"""The file of `STOCKSTREAM_ALERTS`: groups of symbols, rules, and the routes that alerts are sent to. docs/alerts.md describes it.

Everything wrong with it is one line that begins with `FILE:LINE:`. Values `env:NAME` are read from the environment, so that secrets stand in no file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stockstream.errors import SettingsError
from stockstream.sinks.notify.opening import KINDS
from stockstream.sinks.notify.route import RouteSettings, Secret
from stockstream.transforms.cleaning.limits import composed, symbol_fault
from stockstream.transforms.rules.conditions import RULE_NAMES
from stockstream.wording import one_line

TABLES = ("groups", "rules", "routes")
ENVIRONMENT = "env:"
MAX_BYTES = 4_000_000
MAX_ROUTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_PLACE_IN_ERROR = re.compile(r" \(at line (\d+), column \d+\)$|\(at end of document\)$")
_FIELD_IN_ERROR = re.compile(r" - at `\$\.?([A-Za-z0-9_]*)[^`]*`$")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_DOTTED = r"(?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+))*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")


class AlertsFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds, valid as a whole.

    `groups`: symbols by group. `rules`: tables by rule, as they are there. `routes`: by name, with values of the environment in place, and with the symbols
    of their groups among their `symbols`.
    """

    groups: Mapping[str, Sequence[str]] = {}
    rules: Mapping[str, Mapping[str, Any]] = {}
    routes: Mapping[str, RouteSettings] = {}


def read_alerts_file(path: str) -> AlertsFile:
    """Reads the file; an empty path is an empty file. Raises `SettingsError`, one line that names file and line."""
    return parse_alerts_file(path, bytes_of(path)) if path else AlertsFile()


def bytes_of(path: str) -> bytes:
    """The bytes of the file. Raises `SettingsError`."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read (STOCKSTREAM_ALERTS): {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{path}:1: the file has more than {MAX_BYTES:,} bytes (STOCKSTREAM_ALERTS)")
    return data


def parse_alerts_file(path: str, data: bytes, environment: Mapping[str, str] = os.environ) -> AlertsFile:
    """The file's contents. `path` is for messages. Raises `SettingsError`."""
    return _Parser(path, data, environment).parse()


class _Parser:
    def __init__(self, path: str, data: bytes, environment: Mapping[str, str]) -> None:
        self._path, self._data, self._environment = path, data, environment
        self._lines: list[str] = []

    def parse(self) -> AlertsFile:
        try:
            text = self._data.decode("utf-8-sig")
            self._lines = text.split("\n")
            found = tomllib.loads(text)
        except UnicodeDecodeError as error:
            raise SettingsError(f"{self._path}:{self._data[: error.start].count(10) + 1}: the file is not UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            place = _PLACE_IN_ERROR.search(str(error))
            line = int(place[1]) if place and place[1] else len(self._lines)
            raise SettingsError(f"{self._path}:{line}: no TOML: {_PLACE_IN_ERROR.sub('', str(error))}") from None
        except RecursionError:
            raise SettingsError(f"{self._path}:1: no TOML: it is nested too deeply") from None
        for name in found:
            if name not in TABLES:
                raise self._error((name,), f"there is no table {name!r}{_near(name, TABLES)}; allowed are {', '.join(TABLES)}")
        groups = dict(self._groups(self._table(found, "groups")))
        rules = dict(self._rules(self._table(found, "rules")))
        routes = self._table(found, "routes")
        if len(routes) > MAX_ROUTES:
            raise self._error(("routes", list(routes)[MAX_ROUTES]), f"there are {len(routes)} routes; at most {MAX_ROUTES} are allowed")
        return AlertsFile(groups=groups, rules=rules, routes={name: self._route(name, table, groups, rules) for name, table in routes.items()})

    def _table(self, found: dict[str, Any], name: str) -> dict[str, Any]:
        table = found.get(name, {})
        if not isinstance(table, dict):
            raise self._error((name,), f"{name} must be a table: [{name}] or [{name}.NAME]")
        return table

    def _groups(self, table: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
        for name, symbols in table.items():
            self._check_name(("groups", name), name)
            if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
                raise self._error(("groups", name), f"groups.{name} must be a list of symbols, as [\"AAPL\", \"MSFT\"]")
            yield name, self._symbols(("groups", name), symbols)

    def _rules(self, table: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, rule in table.items():
            self._check_name(("rules", name), name)
            if not isinstance(rule, dict):
                raise self._error(("rules", name), f"rules.{name} must be a table: [rules.{name}]")
            yield name, rule

    def _route(self, name: str, table: Any, groups: Mapping[str, list[str]], rules: Mapping[str, Any]) -> RouteSettings:
        at = ("routes", name)
        self._check_name(at, name)
        if not isinstance(table, dict):
            raise self._error(at, f"routes.{name} must be a table: [routes.{name}]")
        kind = table.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            what = "has no kind" if kind is None else f"has the kind {kind!r}, which there is not{_near(str(kind), list(KINDS))}"
            raise self._error((*at, "kind") if "kind" in table else at, f"routes.{name} {what}; allowed are {', '.join(KINDS)}")
        of_kind = KINDS[kind]
        values = {field: self._value((*at, field), value, secret=field in of_kind.secrets) for field, value in table.items()}
        try:
            route = msgspec.convert(values, of_kind)
        except msgspec.ValidationError as error:
            raise self._invalid(at, of_kind, str(error)) from None
        for field, fault in route.faults():
            shown = f"routes.{name}.{field}: {fault}"
            for value in values.values():
                if isinstance(value, Secret) and value:
                    shown = shown.replace(str.__str__(value), "***")
            raise self._error((*at, field), shown)
        known = sorted({*RULE_NAMES, *rules})
        for rule in route.rules:
            if rule not in known:
                raise self._error((*at, "rules"), f"routes.{name}.rules: there is no rule {rule!r}{_near(rule, known)}; rules are {', '.join(known)}")
        symbols = self._symbols((*at, "symbols"), route.symbols)
        for group in route.groups:
            if group not in groups:
                there = ", ".join(groups) or "none is defined in [groups]"
                raise self._error((*at, "groups"), f"routes.{name}.groups: there is no group {group!r}{_near(group, list(groups))}; groups are: {there}")
            symbols += groups[group]
        return msgspec.structs.replace(route, symbols=list(dict.fromkeys(symbols)), rules=route.rules)

    def _value(self, at: tuple[str, ...], value: Any, *, secret: bool) -> Any:
        """The value, or that of the environment which it names."""
        if isinstance(value, list):
            return [self._value(at, each, secret=secret) for each in value]
        if not isinstance(value, str):
            return value
        if not value.startswith(ENVIRONMENT):
            if secret and value:
                raise self._error(at, f"{'.'.join(at)} must be given as \"env:NAME\", so that no file holds it")
            return value
        name = value.removeprefix(ENVIRONMENT).strip()
        if not self._environment.get(name, "").strip():
            raise self._error(at, f"{'.'.join(at)}: the environment has no variable {name!r}, or it is empty")
        return Secret(self._environment[name].strip())

    def _symbols(self, at: tuple[str, ...], symbols: Sequence[str]) -> list[str]:
        for symbol in symbols:
            if fault := symbol_fault(symbol):
                raise self._error(at, f"{'.'.join(at)}: {symbol!r}: {fault}", symbol)
        return [composed(symbol) for symbol in symbols]

    def _check_name(self, at: tuple[str, ...], name: str) -> None:
        if not _NAME.fullmatch(name):
            raise self._error(at, f"{name!r} is no name: letters, digits, dash and underscore, 40 at most")

    def _invalid(self, at: tuple[str, ...], of_kind: type[RouteSettings], text: str) -> SettingsError:
        allowed = of_kind.__struct_fields__
        if found := _UNKNOWN.search(text):
            what = f"has no setting {found[1]!r}{_near(found[1], allowed)}; allowed are {', '.join(sorted(allowed))}"
            return self._error((*at, found[1]), f"{'.'.join(at)} {what}")
        if found := _MISSING.search(text):
            return self._error(at, f"{'.'.join(at)} lacks {found[1]!r}")
        found = _FIELD_IN_ERROR.search(text)
        field = found[1] if found else ""
        what = _FIELD_IN_ERROR.sub("", text)
        what = what[:1].lower() + what[1:]
        if field == "states":
            what = "allowed are opened, updated, closed"
        elif field == "severity":
            what = "allowed are warning, critical"
        elif field == "tls":
            what = "allowed are starttls, tls, none"
        return self._error((*at, field) if field else at, f"{'.'.join((*at, field)) if field else '.'.join(at)}: {what}")

    def _error(self, at: tuple[str, ...], text: str, near: str = "") -> SettingsError:
        return SettingsError(f"{self._path}:{self._line(at, near)}: {one_line(text)}")

    def _line(self, at: tuple[str, ...], near: str = "") -> int:
        """The line on which this key stands, or its table; of a list over several lines, that of the text `near`."""
        best, depth, table = 1, 0, tuple[str, ...]()
        for number, line in enumerate(self._lines, 1):
            if header := _HEADER.match(line):
                table = here = _parts(header[1])
            elif key := _KEY.match(line):
                here = (*table, *_parts(key[1]))
            else:
                continue
            common = here[: len(at)]
            if len(common) > depth and common == at[: len(common)]:
                best, depth = number, len(common)
        if near:
            for number, line in enumerate(self._lines[best - 1 :], best):
                if near in line:
                    return number
                if number > best and (_HEADER.match(line) or _KEY.match(line)):
                    break
        return best


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+", dotted) if part.strip())


def _near(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, list(names), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


class FollowedAlertsFile:
    """The file while a worker runs: read again when it changed. A broken edit keeps what was valid before.

    Raises `SettingsError` if the file is not valid at the start.
    """

    def __init__(self, path: str) -> None:
        self.path, self.fault = path, ""
        self._data = bytes_of(path) if path else b""
        self._stamp = self._stamp_now()
        self.current = parse_alerts_file(path, self._data) if path else AlertsFile()

    def changed(self) -> bool:
        """Whether the file has changed since the last call, in a way that is valid or not. Then `current` or `fault` is new."""
        if not self.path or (stamp := self._stamp_now()) == self._stamp:
            return False
        try:
            data = bytes_of(self.path)
            self._stamp = stamp
            if data == self._data and not self.fault:
                return False
            self._data = data
            self.current, self.fault = parse_alerts_file(self.path, data), ""
        except SettingsError as error:
            self._stamp = stamp
            if str(error) == self.fault:
                return False
            self.fault = str(error)
        return True

    def _stamp_now(self) -> tuple[int, int, int] | None:
        if not self.path:
            return None
        try:
            found = Path(self.path).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
