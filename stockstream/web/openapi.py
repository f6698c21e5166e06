"""The parameters and answers of the views, as one table: it validates the parameters and generates `/openapi.json` (OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from stockstream.sources.health import SourceState
from stockstream.web.answers import OutcomeCount


class BadParameter(ValueError):
    """A parameter that an operation does not accept. The text names what is allowed."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the path or the query. Strings are bounded by `maximum` characters, integers by `minimum` and `maximum`."""

    name: str
    description: str
    kind: Literal["string", "integer"] = "string"
    place: Literal["path", "query"] = "query"
    default: str | int | None = None
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> str | int:
        """The value in `text`. Raises `BadParameter`."""
        if self.choices and text not in self.choices:
            raise BadParameter(f"{self.name}={_shown(text)}: allowed are {', '.join(self.choices)}")
        if self.kind == "string":
            if not text or len(text) > (self.maximum or 100):
                raise BadParameter(f"{self.name} has {len(text)} characters: 1 to {self.maximum or 100} are allowed")
            return text
        allowed = f"a whole number from {self.minimum} to {self.maximum} is allowed"
        if not (text.isascii() and text.removeprefix("-").isdigit()) or len(text) > 18:
            raise BadParameter(f"{self.name}={_shown(text)}: {allowed}")
        number = int(text)
        if not (self.minimum or 0) <= number <= (self.maximum if self.maximum is not None else number):
            raise BadParameter(f"{self.name}={number}: {allowed}")
        return number

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema."""
        schema: dict[str, Any] = {"type": self.kind}
        if self.choices:
            schema["enum"] = list(self.choices)
        elif self.kind == "integer":
            schema |= {"minimum": self.minimum, "maximum": self.maximum}
        else:
            schema |= {"minLength": 1, "maxLength": self.maximum or 100}
        if self.default is not None:
            schema["default"] = self.default
        return schema


@dataclass(frozen=True, slots=True)
class Operation:
    """One GET view. `answer` is a type that msgspec supports, a JSON Schema, or None if the content is not JSON. `errors` explains each error status."""

    path: str
    name: str
    summary: str
    answer: Any = None
    content_type: str = "application/json"
    parameters: tuple[Parameter, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)

    def read(self, path: Mapping[str, str], query: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """All parameters by name; None for one that is neither given nor has a default. Raises `BadParameter`."""
        taken = {p.name: p for p in self.parameters if p.place == "query"}
        values: dict[str, Any] = {p.name: p.default for p in self.parameters}
        seen: set[str] = set()
        for name, text in query:
            if name not in taken:
                raise BadParameter(f"no parameter {_shown(name)}: {self.path} takes {', '.join(taken) or 'none'}")
            if name in seen:
                raise BadParameter(f"{name} is given twice")
            seen.add(name)
            values[name] = taken[name].read(text)
        return values | dict(path)


class ErrorDetail(msgspec.Struct, kw_only=True):
    """The HTTP status and the reason, with what is allowed."""

    status: int
    message: str


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """The body of every error."""

    error: ErrorDetail


class Health(msgspec.Struct, kw_only=True):
    """Answer of the health views when all is well."""

    status: Literal["ok"]
    detail: str


class Lag(msgspec.Struct, kw_only=True):
    """Records of a partition that this worker has not read yet."""

    topic: str
    partition: int
    lag: int


class ArchivePosition(msgspec.Struct, kw_only=True):
    """The archive holds all raw records of the partition through `offset`."""

    partition: int
    offset: int


class ArchivedTopic(msgspec.Struct, kw_only=True):
    """The archive holds all rows of the records of a partition of `windows`, `alerts`, `predictions` or `outcomes` through `offset`; -1: of none.

    `read` is the last record that was read, `buffered_bytes` what waits to be written. `fault` is why the last attempt failed; empty if it did not.
    """

    topic: str
    partition: int
    offset: int
    read: int
    buffered_bytes: int
    fault: str


class HopLatency(msgspec.Struct, kw_only=True):
    """Percentiles of the last 60 s in ms, null without observations."""

    p50: float | None
    p99: float | None
    count: int


class LagPercentiles(msgspec.Struct, kw_only=True):
    """How far ticks come behind their source's watermark, in ms; null without ticks."""

    p50: int | None
    p99: int | None
    p99_9: int | None


class SourceLateness(msgspec.Struct, kw_only=True):
    """How far the ticks of a source come behind its watermark in this worker's partitions, over the last hour.

    `lateness_ms` is what holds for it, `suggested_lateness_ms` what 99.9 % of its ticks would need to come in time. `slow_symbols` are up to ten symbols more
    than half of whose ticks come late: they belong into a source of their own.
    """

    source: str
    lateness_ms: int
    ticks: int
    late_ticks: int
    rejected_late: int
    late_rows: int
    lag_ms: LagPercentiles
    suggested_lateness_ms: int | None
    slow_symbols: list[str]


class RouteState(msgspec.Struct, kw_only=True):
    """A route of alerts on this worker. Counts are since the worker started, and of its partitions.

    `state` is `failing` while the last attempt failed, with its `fault`. `held` changes are in the next summary, `summarised` are or were in one.
    """

    route: str
    kind: str
    place: str
    state: Literal["running", "failing"]
    fault: str
    failures: int
    since: int | None
    next_attempt: int | None
    sent: int
    dead: int
    summarised: int
    held: int
    lag: int


class Pipeline(msgspec.Struct, kw_only=True):
    """The state of this worker. Rates are of the last 60 s, totals and rejects since its start. More members may be added.

    `models_note` gives the reason if rows are not predicted by the registry's champion; it is empty if they are. `sources_note` names the sources of the
    group that are in trouble and why; it is empty if none is. `alerts_file_fault` gives the line of STOCKSTREAM_ALERTS that keeps its last edit from use.

    `ready` and `status` are those of `/readyz`.
    """

    ready: bool
    status: str
    lag: list[Lag]
    latency_ms: dict[str, HopLatency]
    rates_per_s: dict[str, float]
    totals: dict[str, int]
    rejected: dict[str, int]
    archive: list[ArchivePosition]
    archive_topics: list[ArchivedTopic] = []
    sources: list[SourceState]
    lateness: list[SourceLateness] = []
    routes: list[RouteState] = []
    alerts_file_fault: str = ""
    outcomes: list[OutcomeCount]
    models_note: str = ""
    sources_note: str = ""
    views: dict[str, Any]


ModelState = Literal["champion", "shadow", "suspended", "missing"]


class ModelPartition(msgspec.Struct, kw_only=True):
    """The state of a model in one partition of this worker, from the raw offset `since_offset` on, with the reason if it does not score."""

    partition: int
    state: ModelState
    since_offset: int
    reason: str


class Model(msgspec.Struct, kw_only=True):
    """A model that scores, or should. Its other members come from the registry.

    `state` is `suspended` if its predictions could not be used, and `missing` if it cannot be loaded, each with a `reason`. If partitions differ, it is the
    worst of them. `version` is empty if the registry names no champion. `not_predicted` counts this worker's rows without its prediction since the start.
    """

    name: str
    version: str
    role: Literal["champion", "shadow"]
    state: ModelState
    reason: str
    not_predicted: int
    partitions: list[ModelPartition]


def document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the operations."""
    operations = tuple(operations)
    answers = {op.name: op.answer for op in operations if op.answer is not None and not isinstance(op.answer, dict)}
    schemas, components = msgspec.json.schema_components([*answers.values(), ErrorAnswer], ref_template="#/components/schemas/{name}")
    by_name = dict(zip(answers, schemas, strict=False))
    paths = {}
    for op in operations:
        content: dict[str, Any] = {}
        if op.answer is not None:
            content = {"schema": by_name.get(op.name, op.answer)}
        responses: dict[str, Any] = {"200": {"description": op.summary, "content": {op.content_type: content}}}
        for status, reason in sorted({**op.errors, **({400: "A parameter is not allowed."} if op.path.startswith("/api/") else {})}.items()):
            responses[str(status)] = {"description": reason, "content": {"application/json": {"schema": schemas[-1]}}}
        paths[op.path] = {"get": {
            "operationId": op.name, "summary": op.summary, "responses": responses,
            "parameters": [
                {"name": p.name, "in": p.place, "required": p.place == "path", "description": p.description, "schema": p.schema()} for p in op.parameters
            ],
        }}  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stockstream", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Live state of the market as this app holds it. Times are epoch ms UTC unless the name ends in _s or is `second` (epoch s).",
        },
        "paths": paths,
        "components": {"schemas": components},
    }  # fmt: skip


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
