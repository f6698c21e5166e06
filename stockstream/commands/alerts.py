"""`stockstream alerts`: the alerts file and the routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping

import click
import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stockstream.alerts_file import AlertsFile, read_alerts_file
from stockstream.console import report, table
from stockstream.errors import DeliveryError, SettingsError
from stockstream.kafka.admin import is_embedded, producer_options
from stockstream.kafka.compacted_topic import read_compacted
from stockstream.kafka.quiet import quiet_clients
from stockstream.records import DeadAlert
from stockstream.settings import Settings, load_settings
from stockstream.sinks.notify.notices import Notice, notice_of, notice_of_test
from stockstream.sinks.notify.opening import open_route
from stockstream.sinks.notify.route import RouteError, RouteSettings
from stockstream.transforms.partitioning import home_partition
from stockstream.versions import HEADERS
from stockstream.wording import counted, span

BROKER_TIMEOUT_S = 10.0
_file = click.option("--file", help="The alerts file.  [default: STOCKSTREAM_ALERTS]")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def command() -> None:
    """The alerts file, and the routes that alerts are sent to."""


@command.command()
@click.argument("file", required=False)
@_json
def check(file: str | None, as_json: bool) -> None:
    """Check FILE, by default that of STOCKSTREAM_ALERTS, as a worker does at its start. It sends nothing."""
    path = file or load_settings().alerts
    found = _read(path)
    if as_json:
        listed = [{"route": name, "kind": route.kind, "place": route.place, "filters": _filters(route)} for name, route in found.routes.items()]
        click.echo(msgspec.json.encode({"file": path, "groups": found.groups, "rules": list(found.rules), "routes": listed}).decode())
        return
    if found.routes:
        click.echo(table(("route", "kind", "place", "sends"), [(name, route.kind, route.place, _filters(route)) for name, route in found.routes.items()]))
    groups, rules, routes = counted(len(found.groups), "group"), counted(len(found.rules), "rule"), counted(len(found.routes), "route")
    click.echo(f"{path} is valid: {groups}, {rules}, {routes}")


@command.command()
@click.option("--route", "name", required=True, help="The route to test.")
@_file
def test(name: str, file: str | None) -> None:
    """Send one alert that is marked as a test, and print the answer. It needs no broker."""
    settings = load_settings()
    route = _route(_read(file or settings.alerts), name)
    click.echo(f"{name}: {asyncio.run(_send(route, settings, [notice_of_test(name)]))[0]}")


@command.command()
@click.option("--route", "name", help="Only of this route.")
@click.option("--retry", is_flag=True, help="Send each again, oldest first, and remove what is delivered. Ends at the first failure.")
@_file
@_json
def dead(name: str | None, retry: bool, file: str | None, as_json: bool) -> int:
    """List the alerts that a route did not deliver: those in alerts.dead."""
    settings = load_settings()
    with quiet_clients():
        found = {key: each for key, each in asyncio.run(_dead(settings)).items() if name in (None, each.route)}
    if retry:
        return asyncio.run(_retry(settings, _read(file or settings.alerts), found))
    if as_json:
        click.echo(msgspec.json.encode({"items": list(found.values())}).decode())
        return 0
    if not found:
        click.echo("every alert was delivered" + (f" by {name}" if name else ""))
        return 0
    now_ms = time.time_ns() // 1_000_000
    rows = [
        (each.route, each.alert.symbol, each.alert.rule, each.alert.state, f"{span((now_ms - each.at) / 1000)} ago", f"{each.attempts}", each.reason)
        for each in found.values()
    ]  # fmt: skip
    click.echo(table(("route", "symbol", "rule", "state", "given up", "attempts", "reason"), rows))
    return 0


def _read(path: str) -> AlertsFile:
    if not path:
        raise SettingsError("no alerts file is named: give one, or set STOCKSTREAM_ALERTS")
    return read_alerts_file(path)


def _route(file: AlertsFile, name: str) -> RouteSettings:
    if name not in file.routes:
        raise SettingsError(f"there is no route {name!r} in the file; routes are: {', '.join(file.routes) or 'none'}")
    return file.routes[name]


def _filters(route: RouteSettings) -> str:
    parts = [
        f"{route.severity} and above" if route.severity == "warning" else route.severity,
        ", ".join(route.states) or "opened, closed, rising severity",
        f"rules {', '.join(route.rules)}" if route.rules else "",
        counted(len(route.symbols), "symbol") if route.symbols or route.groups else "",
        f"at most {route.limit} a minute" if route.limit else "",
    ]
    return "; ".join(filter(None, parts))


async def _send(route: RouteSettings, settings: Settings, notices: list[Notice]) -> list[str]:
    """The answers. Raises `RouteError`."""
    opened = open_route(route, settings)
    try:
        return [await opened.send(notice) for notice in notices]
    finally:
        await opened.close()


async def _dead(settings: Settings) -> dict[bytes, DeadAlert]:
    """What is in `alerts.dead`, by key, oldest first. Raises `BrokerError`."""
    await is_embedded(settings, timeout_s=BROKER_TIMEOUT_S)              # one clear line if no broker answers
    return dict(sorted(_decoded(await read_compacted(settings, "alerts.dead")), key=lambda each: (each[1].alert.as_of, each[1].at)))


def _decoded(found: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, DeadAlert]]:
    for key, value in found.items():
        with contextlib.suppress(msgspec.DecodeError):                   # of another program
            yield key, msgspec.json.decode(value, type=DeadAlert)


async def _retry(settings: Settings, file: AlertsFile, found: Mapping[bytes, DeadAlert]) -> int:
    failed: dict[str, str] = {}
    delivered: list[tuple[bytes, DeadAlert]] = []
    for key, each in found.items():
        if each.route not in file.routes:
            failed.setdefault(each.route, "the alerts file has no such route")
        if each.route in failed:
            continue
        try:
            await _send(file.routes[each.route], settings, [notice_of(each.alert, msgspec.json.encode(each.alert))])
        except RouteError as error:
            failed[each.route] = str(error)
        else:
            delivered.append((key, each))
            await _remove(settings, key, each)
    click.echo(f"{counted(len(delivered), 'alert')} delivered, {len(found) - len(delivered):,} left")
    for route, reason in failed.items():
        report(f"route {route}: {reason}")
    return 1 if failed else 0


async def _remove(settings: Settings, key: bytes, dead: DeadAlert) -> None:
    producer = AIOKafkaProducer(**await producer_options(settings, timeout_s=BROKER_TIMEOUT_S))
    await producer.start()
    try:
        partition = home_partition(dead.alert.symbol, settings.partitions)
        await producer.send_and_wait(settings.topic("alerts.dead"), None, key=key, partition=partition, headers=HEADERS)
    except KafkaError as error:
        raise DeliveryError(f"the broker did not confirm that alerts.dead lacks {key.decode()}: {error}") from error
    finally:
        await producer.stop()
