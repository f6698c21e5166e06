"""The contract of a route, and the settings that all kinds share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Protocol

import msgspec

from stockstream.errors import StockstreamError
from stockstream.sinks.notify.notices import Notice
from stockstream.wording import one_line

REASON_LENGTH = 240
State = Literal["opened", "updated", "closed"]
Severity = Literal["warning", "critical"]


class Secret(str):
    """A text that is printed as `***`. `secrets_of` finds it, so that `plain` removes it from the texts of others."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class RouteError(StockstreamError):
    """A notice was not delivered; the text is one line without secrets."""


class Retry(RouteError):
    """The route cannot deliver for now: it is down, busy, or wants other credentials. `after_s` is how long it asks to wait, 0 if it does not ask."""

    retriable = True

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Refused(RouteError):
    """The route works, and refuses this notice: sending it again cannot help."""


class RouteSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a `[routes.NAME]` table may hold, whatever its kind. A kind adds its own.

    `severity`: least severity. `rules`, `symbols`, `groups`: only these; none: all. `states`: which changes; none: opened, closed, and updates that raise the
    severity. `max_per_minute`: more become one summary; 0: no limit. `retry_s`: how long a notice is tried again. `timeout_s`: of one attempt.
    """

    per_minute: ClassVar[int] = 600
    """`max_per_minute` where it is not set."""
    secrets: ClassVar[tuple[str, ...]] = ()
    """Fields that must be given as `env:NAME`."""

    kind: str
    severity: Severity = "warning"
    rules: list[str] = []
    symbols: list[str] = []
    groups: list[str] = []
    states: list[State] = []
    max_per_minute: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    retry_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 3_600
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=120)] = 10.0

    def faults(self) -> Iterable[tuple[str, str]]:
        """Fields with a value that cannot be used, and why."""
        return ()

    @property
    def limit(self) -> int:
        return self.per_minute if self.max_per_minute is None else self.max_per_minute

    @property
    def place(self) -> str:
        """Where it sends, without secrets."""
        return ""


class Route(Protocol):
    """One place that notices are sent to. Calls come one at a time."""

    async def send(self, notice: Notice) -> str:
        """Delivers the notice, within `timeout_s` seconds. Returns the answer in one line, without secrets.

        The same notice may come again after a crash, with the same `key`. Raises `Retry` and `Refused`.
        """
        ...

    async def close(self) -> None:
        """Closes connections."""
        ...


def secrets_of(settings: RouteSettings) -> list[str]:
    """The values of the settings that no text may show."""
    fields: dict[str, Any] = msgspec.structs.asdict(settings)
    return [str.__str__(value) for value in fields.values() if isinstance(value, Secret) and value]


def plain(text: object, secrets: Iterable[str] = ()) -> str:
    """The text on one line of at most REASON_LENGTH characters, with `***` in place of secrets."""
    found = one_line(text)
    for secret in sorted(secrets, key=len, reverse=True):
        found = found.replace(secret, "***")
    return found if len(found) <= REASON_LENGTH else found[: REASON_LENGTH - 3] + "..."
