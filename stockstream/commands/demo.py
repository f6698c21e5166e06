"""`stockstream demo`: the whole pipeline on this machine, with a simulated market."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import click
import msgspec
from aiokafka.errors import KafkaError

from models.registry import Registry, RegistryError
from stockstream.children import Child
from stockstream.commands.train import train_first_model
from stockstream.commands.watch import write_watchlist
from stockstream.commands.worker import worker_command
from stockstream.endings import DO_NOT_RESTART
from stockstream.errors import BrokerError, ModelError, StockstreamError
from stockstream.invocation import command_line
from stockstream.kafka.admin import connect, ensure_topics
from stockstream.kafka.compacted_topic import read_compacted
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.kafka.quiet import quiet_clients
from stockstream.locks import FolderLock
from stockstream.settings import Settings, load_settings
from stockstream.sinks.archive.compacted_object import read_compacted_object
from stockstream.sinks.archive.compactions import compaction_of_data
from stockstream.sinks.archive.current import current
from stockstream.sinks.archive.processed import read_made
from stockstream.sinks.stores import open_store
from stockstream.sources.ingestion import Watch
from stockstream.sources.simulated import default_symbols
from stockstream.transforms.cleaning.decoding import UNREADABLE
from stockstream.wording import counted

EMBEDDED = "embedded"
HOST = "127.0.0.1"
SESSION_TIMEOUT_S = 6.0
"""The embedded broker lets a group wait for half of it."""
BROKER_TIMEOUT_S = 5.0
DRAIN_S = 10.0
"""How long the end of a run waits until the worker has processed the last ticks."""
DRAIN_POLL_S = 0.1
REST_MARGIN_S = 0.5
"""The log is at rest once nothing has come for the idle time, after which a worker closes the last second, and this margin."""
WORKER_GRACE_S = 5.5
RESTARTS = 3
RESTART_DELAY_S = 1.0
LAST_LOG_LINES = 8
PLAIN_LINE_EVERY_S = 10
SILENT_S = 60
EXAMPLE_SQL = "SELECT symbol, minute, open, high, low, close, volume FROM bars_1m ORDER BY volume DESC LIMIT 5"
BROKER_BYTES_A_TICK, BROKER_BYTES_A_SECOND = 915, 210_000
"""How much the embedded broker's memory grows per tick, derived messages included: measured with zstd, 100 and 1,000 symbols, 4 and 8 minutes."""
LATENCY_HOP = "raw_to_prediction"

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one worker's `/api/pipeline`: rates over the last minute, totals since it started, latency in ms (None before there is one).

    Alerts count as on the dashboard: `open_alerts` are open, `alerts` are all so far. One alert is several messages.
    """

    ticks_per_s: float = 0.0
    p99_ms: float | None = None
    ticks: int = 0
    alerts: int = 0
    open_alerts: int = 0
    predictions: int = 0

    @classmethod
    def of(cls, pipeline: Mapping[str, Any]) -> Figures:
        """Reads the view's JSON; a missing figure keeps its default."""
        rates, totals, latency = pipeline.get("rates_per_s", {}), pipeline.get("totals", {}), pipeline.get("latency_ms", {})
        p99 = latency.get(LATENCY_HOP, {}).get("p99")
        views = pipeline.get("views", {})
        return cls(
            float(rates.get("ticks_accepted", 0.0)), None if p99 is None else float(p99), int(totals.get("ticks_accepted", 0)),
            int(views.get("alerts", 0)), int(views.get("open_alerts", 0)), int(totals.get("predictions", 0)),
        )  # fmt: skip

    def after(self, before: Figures) -> Figures:
        """These figures with an earlier worker's totals added. Alerts are read from the topic, also those of earlier workers."""
        ticks, predictions = self.ticks + before.ticks, self.predictions + before.predictions
        return Figures(self.ticks_per_s, self.p99_ms, ticks, max(self.alerts, before.alerts), self.open_alerts, predictions)

    def line(self, clock: str, broker_bytes: int = 0) -> str:
        """The figures as one line of text."""
        latency = "-" if self.p99_ms is None else f"{self.p99_ms:,.0f} ms"
        parts = [clock, f"{self.ticks_per_s:,.0f} ticks/s", f"p99 latency {latency}", f"open alerts {self.open_alerts:,}", f"predictions {self.predictions:,}"]
        return "  ".join([*parts, f"broker {broker_bytes / 2**20:,.0f} MB"] if broker_bytes else parts)


@dataclass(slots=True)
class LiveLine:
    """One line kept up to date on a terminal; elsewhere a line every `PLAIN_LINE_EVERY_S` seconds."""

    terminal: bool
    shown: bool = False
    due: float = 0.0

    def show(self, text: str, now: float) -> None:
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r{text[:width]}\x1b[K", nl=False, color=True)
            self.shown = True
        elif now >= self.due:
            click.echo(text)
            self.due = now + PLAIN_LINE_EVERY_S

    def report(self, text: str) -> None:
        """Prints a line that is not overwritten."""
        self.clear()
        click.echo(text)

    def clear(self) -> None:
        if self.shown:
            click.echo("\r\x1b[K", nl=False, color=True)
            self.shown = False


@dataclass(slots=True)
class Demo:
    """One run. `settings` are the worker's; `broker` is None if the user named one; with `minutes` 0 it runs until a signal."""

    settings: Settings
    symbols: Sequence[str]
    minutes: float
    memory_bytes: int
    logs: Path
    broker: EmbeddedBroker | None
    line: LiveLine
    worker: Child | None = None
    started: float = 0.0
    restarts: int = 0
    before: Figures = field(default_factory=Figures)
    current: Figures = field(default_factory=Figures)
    complete: bool = False
    """Whether the worker processed every tick of this run before it was stopped, and ended without being killed."""

    @property
    def log(self) -> Path:
        """The file of the worker's output."""
        return self.logs / "worker.log"

    @property
    def figures(self) -> Figures:
        """The figures of all workers of this run."""
        return self.current.after(self.before)

    async def run(self) -> None:
        """Runs until the time is over, the memory limit is reached, or SIGINT or SIGTERM comes. It leaves no worker behind. Raises `StockstreamError`.

        At the end the market stops first, and the worker processes the remaining ticks. A signal meanwhile kills the worker.
        """
        stop_requested, hurry = asyncio.Event(), asyncio.Event()
        _on_signals(lambda: hurry.set() if stop_requested.is_set() else stop_requested.set())
        work, stopper, hurry_task = asyncio.create_task(self._work()), asyncio.create_task(stop_requested.wait()), asyncio.create_task(hurry.wait())
        try:
            await asyncio.wait({work, stopper}, return_when=asyncio.FIRST_COMPLETED)
            stop_requested.set()
            if work.done():
                work.result()
            await _ended(work)
            await self._drain(hurry_task)
        finally:
            await _ended(work, stopper)
            self.line.clear()
            if self.worker is not None:
                await self._stop(self.worker, hurry_task)
            await _ended(hurry_task)

    async def _drain(self, hurry_task: asyncio.Task[Any]) -> None:
        """Stops the market, then waits at most `DRAIN_S` until the worker has processed all its ticks, or a second signal comes."""
        self.line.report("stopping: the market stops first, then the worker archives the last ticks (press Ctrl-C again to stop at once) ...")
        drained = asyncio.create_task(self._drained())
        await asyncio.wait({drained, hurry_task}, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        try:
            self.complete = drained.done() and drained.result()
        except (StockstreamError, KafkaError) as error:
            self.line.report(f"the market could not be stopped before the worker, so the last ticks may not be archived: {error}")
        finally:
            await _ended(drained)

    async def _drained(self) -> bool:
        """True once the market is stopped and all its ticks are processed; False if the worker ends before. Raises `StockstreamError`, `KafkaError`."""
        await watch_only(self.settings, ())
        rest_s = self.settings.idle_ms / 1000 + REST_MARGIN_S
        ends_before: Any = None
        since = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as web:
            while self.worker is not None and self.worker.poll() is None:
                answer = await _pipeline(web, self.settings.web_port)
                if answer is not None:
                    self.current = Figures.of(answer)
                if not self.figures.ticks and (answer is None or not answer.get("ready")):
                    return True                                          # the worker was starting: nothing has come
                if answer is None or not is_drained(answer) or ends_before != (ends_before := raw_ends(answer)):
                    since = time.monotonic()
                elif time.monotonic() - since >= rest_s:
                    return True
                await asyncio.sleep(DRAIN_POLL_S)
        return False

    async def _stop(self, worker: Child, hurry_task: asyncio.Task[Any]) -> None:
        stopping = asyncio.create_task(asyncio.to_thread(worker.stop, WORKER_GRACE_S))
        await asyncio.wait({stopping, hurry_task}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            worker.kill()
        if await stopping == -signal.SIGKILL:
            self.complete = False

    async def _work(self) -> None:
        await ensure_topics(self.settings)
        await watch_only(self.settings, self.symbols)
        self._start()
        self._print_addresses()
        await self._watch()

    def _start(self) -> None:
        environment = worker_environment(self.settings)
        with self.log.open("ab") as output:
            self.worker = Child(worker_command(HOST, self.settings.web_port, "info", web=True), output=output, environment=environment)
        self.started = time.monotonic()

    def _print_addresses(self) -> None:
        settings = self.settings
        data = Path(settings.archive.removeprefix("file://"))
        kind = "embedded, in memory: it ends with the demo" if self.broker is not None else "your Kafka"
        topics = ", ".join(settings.topic(name) for name in ("ticks.raw", "windows", "alerts", "predictions", "outcomes"))
        rows = [
            ("dashboard", f"http://{HOST}:{settings.web_port}/"), ("broker", f"{settings.broker} ({kind})"), ("topics", topics),
            ("archive", f"{data}/raw and {data}/processed"), ("query", command_line("query", "--archive", settings.archive, EXAMPLE_SQL)),
            ("events", f"{settings.state_dir}/simulated.{settings.seed}.events.jsonl: events that the simulation injected"),
            ("worker log", str(self.log)), ("stop", "Ctrl-C" + (f", or by itself after {self.minutes:g} min" if self.minutes else "")),
        ]  # fmt: skip
        if self.broker is not None:
            minutes = self.memory_bytes / (BROKER_BYTES_A_TICK * len(self.symbols) + BROKER_BYTES_A_SECOND) / 60
            bound = f"{self.memory_bytes / 2**20:,.0f} MB (--memory-mb)"
            rows.append(("memory", f"the broker keeps everything; the demo ends at {bound}, after about {minutes:,.0f} min"))
        for name, value in rows:
            click.echo(f"  {name:<11}{value}")

    async def _watch(self) -> None:
        started = time.monotonic()
        first_reported = silence_reported = False
        timeout = aiohttp.ClientTimeout(total=2.0)
        async with aiohttp.ClientSession(timeout=timeout) as web:
            while not self.minutes or time.monotonic() - started < self.minutes * 60:
                await asyncio.sleep(1.0)
                await self._check_worker()
                if not self._check_broker():
                    return
                answer = await _pipeline(web, self.settings.web_port)
                now = time.monotonic()
                if answer is not None:
                    self.current = Figures.of(answer)
                figures = self.figures
                if figures.predictions and not first_reported:
                    first_reported = True
                    self.line.report(f"first prediction {now - started:.0f} s after the worker's start")
                if not figures.predictions and not silence_reported and now - started > SILENT_S:
                    silence_reported = True
                    self.line.report(f"no prediction yet after {SILENT_S} s; see {self.log}")
                starting = "the worker is starting" if not figures.ticks else ""
                self.line.show(starting or figures.line(time.strftime("%H:%M:%S"), self.broker.rss_bytes() if self.broker else 0), now)

    async def _check_worker(self) -> None:
        """Restarts the worker if it has died. Raises `StockstreamError` if that does not help."""
        assert self.worker is not None
        status = self.worker.poll()
        if status is None:
            return
        self.worker = None
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self.line.report(f"the worker {how}; its last lines in {self.log}:")
        for text in last_lines(self.log, LAST_LOG_LINES):
            self.line.report(f"    {text}")
        if status == DO_NOT_RESTART or self.restarts == RESTARTS:
            again = "" if status == DO_NOT_RESTART else f" again, after {RESTARTS} restarts"
            raise StockstreamError(f"the worker {how}{again}: see {self.log}")
        self.restarts += 1
        self.before, self.current = self.figures, Figures()
        self.line.report(f"restarting the worker ({self.restarts} of {RESTARTS})")
        await asyncio.sleep(RESTART_DELAY_S)
        self._start()

    def _check_broker(self) -> bool:
        """False if the embedded broker has reached its memory limit. Raises `BrokerError` if it has ended."""
        if self.broker is None:
            return True
        if (status := self.broker.exit_status()) is not None:
            raise BrokerError(f"the embedded broker ended with status {status}: see {self.broker.log}")
        if self.broker.rss_bytes() <= self.memory_bytes:
            return True
        self.line.report(
            f"the embedded broker, which keeps everything in memory, has reached {self.memory_bytes / 2**20:,.0f} MB (--memory-mb), so the demo ends. "
            f"To run it longer, use Kafka: `make demo KAFKA=1`, or `{command_line('demo', '--broker', 'kafka://host:port')}`"
        )
        return False


def is_drained(pipeline: Mapping[str, Any]) -> bool:
    """Whether, by a worker's `/api/pipeline`, no source has symbols, the consumer lag is 0, and all raw records are cleaned."""
    return (
        bool(pipeline.get("ready"))
        and all(source["symbols"] == 0 for source in pipeline["sources"])
        and all(of["lag"] == 0 for of in pipeline["lag"])
        and all(of["judged"] >= of["seen"] for of in pipeline["archive"])
    )


def raw_ends(pipeline: Mapping[str, Any]) -> list[int]:
    """By partition: the last raw offset that the worker has read."""
    return [of["seen"] for of in pipeline["archive"]]


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks and waits for them. Their errors are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def worker_environment(settings: Settings) -> dict[str, str]:
    """The environment variables that give the worker the settings of the demo."""
    return {
        "STOCKSTREAM_BROKER": settings.broker, "STOCKSTREAM_COMPRESSION": settings.compression,
        "STOCKSTREAM_SOURCE": ",".join(settings.source), "STOCKSTREAM_SYMBOLS": "", "STOCKSTREAM_SEED": str(settings.seed),
        "STOCKSTREAM_ARCHIVE": settings.archive, "STOCKSTREAM_MODELS": settings.models, "STOCKSTREAM_STATE_DIR": str(settings.state_dir),
        "STOCKSTREAM_SESSION_TIMEOUT_S": str(settings.session_timeout_s), "STOCKSTREAM_WEB_HOST": settings.web_host,
        "STOCKSTREAM_WEB_PORT": str(settings.web_port), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


async def watch_only(settings: Settings, symbols: Sequence[str]) -> None:
    """Puts exactly these symbols of the simulated market on the watchlist. Entries of other sources stay. Raises `BrokerError`, `DeliveryError`."""
    wanted = {symbol: Watch(symbol=symbol, source="simulated") for symbol in symbols}
    for key, value in (await read_compacted(settings, "watchlist")).items():
        with contextlib.suppress(*UNREADABLE):                   # an entry that cannot be read is left alone
            watch = msgspec.json.decode(value, type=Watch)
            if watch.source == "simulated" and watch.active and key.decode() not in wanted:
                wanted[key.decode()] = Watch(symbol=watch.symbol, source="simulated", active=False)
    await write_watchlist(settings, {symbol: encode(watch) for symbol, watch in wanted.items()})


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file that is being written, blank ones left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 65_536))
            return [text for text in file.read().decode(errors="replace").splitlines() if text.strip()][-count:]
    except OSError as error:
        return [f"({path} cannot be read: {error.strerror})"]


def ensure_model(settings: Settings, symbols: Sequence[str], report: Callable[[str], None]) -> None:
    """Trains a first model if the registry has no usable champion. Raises `StockstreamError`."""
    try:
        registry = Registry(settings.models)
    except RegistryError as error:
        raise ModelError(str(error)) from error
    where = registry.root.absolute()
    try:
        version = registry.champion(settings.model)
        if version is not None:
            registry.load(settings.model, version)
            report(f"model: {settings.model} {version} of {where}")
            return
        report(f"there is no model in {where} yet; training a first one on simulated history ...")
    except RegistryError as error:
        report(f"the model in {where} cannot be used: {error}")
        report("training another one on simulated history ...")
    for sentence in train_first_model(settings, symbols).sentences():
        report(f"  {sentence}")


def require_free_port(port: int) -> None:
    """Raises `StockstreamError` if no process can listen on the port."""
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StockstreamError(f"port {port} of {HOST} cannot be used for the web ({error.strerror}): choose another with --port") from None


async def _reach(settings: Settings) -> None:
    try:
        await (await connect(settings, timeout_s=BROKER_TIMEOUT_S)).close()
    except BrokerError as error:
        raise BrokerError(f"no broker answers at {settings.broker}: start one (`make kafka`), or leave --broker out for the embedded one") from error


async def _pipeline(web: aiohttp.ClientSession, port: int) -> dict[str, Any] | None:
    """The worker's own figures; None while it does not answer."""
    try:
        async with web.get(f"http://{HOST}:{port}/api/pipeline") as response:
            if response.status != 200:
                return None
            answer: dict[str, Any] = await response.json()
            return answer
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None


def _on_signals(call: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):           # Windows: Ctrl-C cancels the run instead
            loop.add_signal_handler(number, call)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is like Ctrl-C while no event loop handles it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@click.option("--symbols", "count", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Number of stocks; each has one tick a second.")
@click.option("--minutes", type=click.FloatRange(0), default=0.0, show_default=True, help="Minutes to run; 0: until Ctrl-C.")
@click.option("--port", type=click.IntRange(1, 65_535), default=6066, show_default=True, help="Port of the dashboard.")
@click.option("--broker", default=EMBEDDED, show_default=True, help="kafka://host:port, or the embedded broker.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the simulated market.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=Path("data"), show_default=True, help="Folder of archive, models and logs.")
@click.option("--memory-mb", type=click.IntRange(64), default=2048, show_default=True, help="Memory at which the embedded broker, and the demo, ends.")
def command(count: int, minutes: float, port: int, broker: str, seed: int, data: Path, memory_mb: int) -> None:
    """Run everything on this machine: a broker, a simulated market, a worker and its dashboard.

    If there is no model, it trains a first one. The archive in ./data stays, and the next run adds to it.
    """
    if math.isnan(minutes):
        raise click.BadParameter("must be a number", param_hint="--minutes")
    require_free_port(port)
    data = data.resolve()
    logs = data / "logs"
    embedded = EmbeddedBroker(logs / "broker.log") if broker == EMBEDDED else None
    address = broker if "//" in broker else f"kafka://{broker}"
    settings = load_settings(
        source=("simulated",), symbols=(), seed=seed, archive=f"file://{data}", models=f"file://{data}/models", state_dir=data / "state",
        web_host=HOST, web_port=port, session_timeout_s=SESSION_TIMEOUT_S, **({"compression": "zstd"} if embedded else {"broker": address}),
    )  # fmt: skip
    symbols = default_symbols(count)
    with quiet_clients(), _terminable(), FolderLock(data, shlex.join(["stockstream", *sys.argv[1:]])):
        try:
            logs.mkdir(parents=True, exist_ok=True)
            (logs / "worker.log").write_bytes(b"")
        except OSError as error:
            raise StockstreamError(f"--data {data} cannot be written: {error.strerror}") from error
        try:
            if embedded is None:
                asyncio.run(_reach(settings))
            else:
                asyncio.run(embedded.start())
                settings = settings.model_copy(update={"broker": embedded.bootstrap})
            click.echo(f"stockstream demo: {counted(count, 'simulated stock')}, seed {seed}")
            ensure_model(settings, symbols, click.echo)
            demo = Demo(settings, symbols, minutes, memory_mb * 2**20, logs, embedded, LiveLine(sys.stdout.isatty()))
            before = processed(settings)
            started = time.monotonic()
            asyncio.run(demo.run())
            _summarise(demo, time.monotonic() - started, ticks_since(settings, before))
        except KeyboardInterrupt:
            click.echo("stopped")
        finally:
            if embedded is not None:
                asyncio.run(embedded.stop())


def processed(settings: Settings) -> set[str]:
    """Names of the archive's objects of accepted ticks. Raises `StockstreamError`."""
    return set(open_store(settings.archive).list("processed/ticks/"))


def ticks_since(settings: Settings, before: Collection[str]) -> int:
    """Number of ticks in objects that were not there before; a compaction may have replaced some. Raises `StockstreamError`."""
    store = open_store(settings.archive)
    count = 0
    for entry in current(store, "ticks"):
        if entry.name in before:
            continue
        if compaction_of_data(entry.name):
            count += sum(source.range.rows for source in read_compacted_object(store, entry.name).list_sources() if source.name not in before)
        else:
            count += read_made(store, entry.name).rows
    return count


def _summarise(demo: Demo, seconds: float, ticks: int) -> None:
    """Prints the results of the run, which added so many ticks to the archive."""
    figures = demo.figures
    minutes, left = divmod(round(seconds), 60)
    counts = ", ".join([counted(figures.ticks, "tick"), counted(figures.alerts, "alert"), counted(figures.predictions, "prediction")])
    latency = "" if figures.p99_ms is None else f", p99 latency {figures.p99_ms:,.0f} ms in the last minute"
    root = Path(demo.settings.archive.removeprefix("file://"))
    click.echo(f"ran {minutes}:{left:02}: {counts}{latency}")
    fate = "they are lost with the broker" if demo.broker is not None else "the next run archives them"
    rest = "" if demo.complete else f" (stopped before the last ticks were archived: {fate})"
    click.echo(f"archived: {counted(ticks, 'tick')} in {root}{rest}; query it with:")
    click.echo(f"  {command_line('query', '--archive', demo.settings.archive, EXAMPLE_SQL)}")
