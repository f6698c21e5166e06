"""The Faust app: its class, and how it is created from the settings with stockstream's transport."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

import aiokafka
import faust
from faust.tables import TableManager
from faust.tables.recovery import Recovery, ServiceStopped
from faust.types import TP
from faust.web.base import BlueprintManager

from stockstream import logs
from stockstream.endings import exit_now, stop_start
from stockstream.errors import ArchiveUnavailable, FencedError, ModelError, SettingsError, StateError, StockstreamError
from stockstream.kafka.admin import LEDGERS, STATE_TABLES, changelog, ensure_topics
from stockstream.kafka.client import MAX_BATCH_BYTES, tls_context
from stockstream.locations import S3_URL, in_url, require_readable, require_writable
from stockstream.set_aside import SetAside
from stockstream.settings import Settings
from stockstream.sinks.s3 import S3Access, S3Store
from stockstream.sinks.stores import require_writable_archive
from stockstream.threads import in_thread
from stockstream.transport import patches
from stockstream.transport.consumer import Consumer, Flow
from stockstream.transport.fence import Fence
from stockstream.transport.messages import Deliveries, Outgoing
from stockstream.transport.producer import Producer, Transport
from stockstream.transport.sending import Sender
from stockstream.transport.watching import watchdog

logger = logging.getLogger(__name__)

RELEASE_S = 2.0
"""How long each part may take to complete its output when partitions are released."""
STOP_S = 8.0
"""How long a worker may take to stop before it exits without waiting."""


class Part(Protocol):
    """A participant in rebalances, such as the stage of an agent."""

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        """Takes over the partitions (numbers by topic). Returns the reading position of each, None for the beginning."""
        ...

    async def release(self, timeout_s: float) -> None:
        """Completes the output in progress, within `timeout_s` seconds, and releases all partitions."""
        ...


class Takeover(Recovery):
    """Ends the worker if a step of a takeover times out. Faust mistakes the timeout for its own stop (faust/tables/recovery.py:561) and would wait forever."""

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if not (self.should_stop or self.app.should_stop):
                owner: App = self.app  # type: ignore[assignment]
                with contextlib.suppress(FencedError):
                    owner.fence.leave(f"a step of taking over partitions took more than {timeout} s")
            raise


class Tables(TableManager):
    """Starts without Faust's pause of a second (faust/tables/manager.py:140): agents and topics start before it, and no table is created later."""

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = Takeover(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class Worker(faust.Worker):
    """A worker without Faust's spinner, which turns at every debug record of every library (faust/worker.py:390): a tenth of an idle worker's CPU.

    It keeps its exit status if nobody reads its output any more.
    """

    def execute_from_commandline(self) -> NoReturn:
        """Runs the worker until it has ended, and exits."""
        try:
            super().execute_from_commandline()
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):                            # the reader is gone: Python would flush again at exit, fail, and exit with 120
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def on_setup_root_logger(self, logger: logging.Logger, level: int) -> None:
        """Leaves the root logger at the requested level."""
        self.spinner = None                                              # it would write control characters to log files
        logs.install(level)

    async def on_startup_finished(self) -> None:
        """Logs addresses and folders in one line, once the first partitions are processed."""
        logger.info("%s", self.app.ready_line())  # type: ignore[attr-defined]
        await self.maybe_start_blockdetection()

    def _on_sigint(self) -> None:
        self._flag_as_shutdown_by_signal()
        self._schedule_shutdown(signal.SIGINT)                           # Faust prints first, which fails if the reader of its output is gone

    def _say(self, msg: str, file: IO[str] | None = None, end: str = "\n", **kwargs: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            super()._say(msg, file, end, **kwargs)


class App(faust.App):
    """The app with what its parts share: the settings, the fence, the sender, and the participants in rebalances."""

    settings: Settings
    embedded: bool = False
    """Whether the broker is the demo's embedded one; known from the start of the app."""
    fence: Fence
    sender: Sender
    set_aside: SetAside
    parts: list[Part]
    on_hole: Callable[[str, int], None] | None = None
    """Called for each hole: what became of it (see `Guard.on_hole`), and the number of offsets."""
    check_frames: Callable[[], Awaitable[Mapping[TP, int | None]]] | None = None
    """Checks the topics of frames once every part has its state; returns the reading positions that change (see `state.lost_frames`)."""
    mount_views: Callable[[Any], Callable[[], Awaitable[None]]]
    """Mounts the views on a web server. Returns a coroutine function that starts reading their topics."""
    ready_line: Callable[[], str]
    """Returns one line with the addresses and folders that this worker uses."""
    waiting_for: str = "the start"
    """What the start is waiting for, for users to read; empty once it waits for nothing."""

    @property
    def chunk_consumer(self) -> Consumer:
        """The consumer, with its type."""
        consumer: Consumer = self.consumer  # type: ignore[assignment]
        return consumer

    @property
    def term(self) -> int:
        """The group's generation, which names the writer of state records."""
        return int(self.consumer_generation_id)

    async def on_start(self) -> None:
        """Checks folders, port, broker and topics before the worker joins its group. The web server starts before the broker is reachable.

        Ends the process on a `StockstreamError`.
        """
        read_topics = None
        try:
            await in_thread(functools.partial(require_places, self.settings), "places")
            if self.conf.web_enabled:
                _require_free_port(str(self.conf.web_bind or self.conf.web_host), int(self.conf.web_port))
                read_topics = self.mount_views(self.web)
                await self.web.maybe_start()                             # Faust would start it after the producer; stockstream's routes precede Faust's own
            self.embedded = await ensure_topics(self.settings, timeout_s=None, waiting=self._wait_for)
        except StockstreamError as error:
            stop_start(error)
        self._wait_for("")
        if read_topics is not None:
            await read_topics()
        if self.embedded:
            logger.warning("the embedded broker has no idempotent producers, so a retry may duplicate messages; use it for the demo only")
        await super().on_start()
        self.add_future(watchdog(self))

    def _wait_for(self, what: str) -> None:
        self.waiting_for = what

    def _new_web(self) -> Any:
        web = super()._new_web()
        if not self.settings.faust_pages:
            web.blueprints = BlueprintManager()                          # Faust's pages expose tables to anyone, and forward requests
        return web

    async def on_stop(self) -> None:
        """Completes the output in progress while the producer still runs. A broker that does not answer delays the end by STOP_S at most."""
        why = f"the worker did not stop within {STOP_S:g} s, perhaps because the broker does not answer: it exits, and the next start resumes at checkpoints"
        hanging = threading.Timer(STOP_S, exit_now, (1, why))
        hanging.daemon = True
        hanging.start()
        try:
            await self.release()
            await super().on_stop()
        finally:
            hanging.cancel()

    @functools.cached_property
    def flow_control(self) -> Flow:
        """See `transport.consumer.Flow`."""
        return Flow()

    async def positions(self, assigned: set[TP]) -> Mapping[TP, int | None]:
        """The reading position of each partition, from the state of every part; the earliest one if several parts read a topic.

        Ends the process on a `StateError` or a `ModelError`.
        """
        by_topic: dict[str, list[int]] = {}
        for tp in sorted(assigned):
            by_topic.setdefault(tp.topic, []).append(tp.partition)
        found: dict[TP, int | None] = {}
        try:
            every = await asyncio.gather(*(part.assign(by_topic) for part in self.parts))
            if self.check_frames is not None and assigned and not self.embedded:
                every.append(await self.check_frames())
            for positions in every:
                for tp, offset in positions.items():
                    other = found.get(tp, offset)
                    found[tp] = None if offset is None or other is None else min(offset, other)
        except (StateError, ModelError) as error:
            stop_start(error)
        return found

    async def release(self, *_: Any, **__: Any) -> None:
        """Releases all parts concurrently, each within RELEASE_S."""
        if self._consumer is not None:
            self.chunk_consumer.end_assignment()
        await asyncio.gather(*(part.release(RELEASE_S) for part in self.parts))

    async def end_assignment(self, *sent: Any, **_: Any) -> None:
        """Releases all partitions if none is assigned, for which Faust asks for no positions. `sent`: the app, then the assigned partitions."""
        if not sent[-1]:
            self.chunk_consumer.end_assignment()
            await self.positions(set())

    def worker_init_post_autodiscover(self) -> None:
        """Leaves the web server to `on_start`, because it is not known yet whether there will be one."""
        self.on_worker_init.send()

    @property
    def web_server_driver_version(self) -> str:
        """The driver's version for Faust's banner, which reads it even without a web server."""
        return super().web_server_driver_version if self.conf.web_enabled else "off"

    def _create_directories(self) -> None:
        """Creates nothing: the memory store needs no folder."""


def _require_free_port(host: str, port: int) -> None:
    """Raises `SettingsError` if the web views cannot bind to this address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            socket.create_server(address[:2], family=family, reuse_port=False).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"the web views cannot listen on {in_url(host)}:{port} (STOCKSTREAM_WEB_HOST, STOCKSTREAM_WEB_PORT): {reason}") from error


def require_places(settings: Settings) -> None:
    """Raises `SettingsError` if a place of the settings cannot be used. A condition that may pass, such as a full disk, is only logged."""
    troubles = [require_writable(settings.state_dir, "STOCKSTREAM_STATE_DIR")]
    if settings.archive != "none":
        troubles.append(require_writable_archive(settings))
    for trouble in filter(None, troubles):
        logger.warning("%s", trouble)
    if settings.models.startswith(S3_URL):
        try:
            S3Store(settings.models, S3Access.of(settings)).require_readable("STOCKSTREAM_MODELS")
        except ArchiveUnavailable as error:
            logger.warning("%s (STOCKSTREAM_MODELS)", error)
    else:
        require_readable(Path(settings.models), "STOCKSTREAM_MODELS")


def _faust_broker(settings: Settings) -> str:
    first, *more = settings.bootstrap_servers
    return ";".join([f"kafka://{first}", *more])


def _credentials(settings: Settings) -> Any:
    context = tls_context(settings)
    if settings.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.sasl_username, password=settings.sasl_password.get_secret_value(), mechanism=settings.sasl_mechanism, ssl_context=context
        )
    return faust.SSLCredentials(context=context) if context else None


def create_app(settings: Settings) -> App:
    """Creates the app, without its agents. The timeouts were measured to give takeovers within a few seconds."""
    patches.install()
    session = settings.session_timeout_s
    app = App(
        settings.group,
        broker=_faust_broker(settings),
        broker_credentials=_credentials(settings),
        broker_session_timeout=session,
        broker_heartbeat_interval=min(0.5, session / 6),
        broker_rebalance_timeout=session + 2,
        broker_request_timeout=session + 3,
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=262_144,        # per partition: a chunk of a backlog takes up to a hundred times as much memory (performance.md, memory)
        consumer_metadata_max_age_ms=5_000,     # notices a recreated topic this soon; the default is five minutes
        producer_acks=-1,
        producer_linger=0.0,                    # a frame is one awaited message, and a linger of 1 ms would be as long as the work between two agents
        producer_max_batch_size=MAX_BATCH_BYTES,
        producer_max_request_size=MAX_BATCH_BYTES + 65_536,
        producer_compression_type=None if settings.compression == "none" else settings.compression,
        producer_request_timeout=max(5.0, session - 1),  # of one request; a batch is retried for `transport.sending.DELIVERY_S`
        stream_buffer_maxsize=8,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        recovery_consistency_check=False,       # faust-streaming/faust#158; state.changelog_table reads the changelogs
        table_standby_replicas=0,
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        topic_allow_declare=True,
        topic_disable_leader=True,
        reply_create_topic=False,
        store="memory://",
        TableManager=Tables,
        Worker=Worker,
        autodiscover=False,
        web_host=in_url(settings.web_host),
        web_bind=settings.web_host,
        web_port=settings.web_port,
        datadir=str(settings.state_dir),
    )
    app.settings = settings
    app.parts = []
    app.set_aside = SetAside(settings.topic_prefix)
    app.fence = Fence(session)
    app.transport = Transport(app.conf.broker_consumer, app)

    def producer() -> aiokafka.AIOKafkaProducer:
        mine: Producer = app.producer  # type: ignore[assignment]
        return mine.client

    def sent(out: Outgoing, deliveries: Deliveries) -> None:
        """Passes frames that this worker sends to its own consumer, which reads them by loopback."""
        if out.topic == clean:
            app.chunk_consumer.pace.closed(out.partition)
        if out.topic in (clean, windows):
            app.chunk_consumer.sent(TP(out.topic, out.partition), deliveries)

    clean, windows = settings.topic("ticks.clean"), settings.topic("windows")
    app.sender = Sender(producer, app.fence, sent, app.set_aside, frozenset(changelog(settings, name) for name in (*STATE_TABLES, *LEDGERS)))
    app.on_partitions_revoked.connect(app.release)
    app.on_partitions_assigned.connect(app.end_assignment)
    return app
