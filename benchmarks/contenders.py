"""Who is measured: how each is started, where its output is, and when its work is complete."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.brokers import Broker
from benchmarks.environments import BenchmarkError, cache, java_classpath, python_of, site_of
from benchmarks.load import Log
from benchmarks.outputs import Reader
from models import features
from models.registry import Registry
from models.xgboost import XGBoostModel, train_horizon
from stockstream.commands.train import HORIZONS_S
from stockstream.records import WINDOWS_SCHEMA
from stockstream.settings import load_settings
from stockstream.transforms.frames import decode

PEERS = Path(__file__).with_name("peers")
ARCHIVE_MAX_BYTES = 8_000_000


@dataclass(slots=True)
class Place:
    """One run of one contender: broker, log, the topics' prefix, and a folder of its own."""

    broker: Broker
    log: Log
    prefix: str
    folder: Path
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def raw(self) -> str:
        return self.prefix + "ticks.raw"

    @property
    def output(self) -> str:
        return self.prefix + "windows"


@dataclass(frozen=True, slots=True)
class Contender:
    """`job` is `full` or `windows` (the peers'); `progress` returns the part of the work that is complete and confirmed."""

    name: str
    title: str
    job: str
    command: Callable[[Place], list[str]]
    progress: Callable[[Place, Reader], float]
    environment: Callable[[Place], dict[str, str]] = lambda _: {}
    topics: tuple[str, ...] = ()
    ends_itself: bool = False
    keeps_state: bool = True


def model_store() -> str:
    """Where the champion of all runs is, made once: two horizons, as many trees as training makes."""
    folder = cache() / "models"
    registry = Registry(f"file://{folder}")
    if registry.champion("xgboost") is None:
        rng = np.random.default_rng(7)
        matrix = rng.normal(size=(4_000, len(features.FEATURES))).astype(np.float32)
        returns = matrix[:, 0] * 1e-4 + rng.normal(scale=1e-3, size=4_000)
        heads = tuple(train_horizon(horizon, matrix, returns, seed=7) for horizon in HORIZONS_S)
        entry = registry.store("xgboost", "xgboost", XGBoostModel("", "", "", heads).files(), {"horizons_s": list(HORIZONS_S), "metrics": {}})
        registry.promote("xgboost", entry.version)
    return f"file://{folder}"


# -- how far they are -------------------------------------------------------


def _frames(place: Place, reader: Reader) -> float:
    """By the raw offsets that the last frame of each partition counts through."""
    raw = reader.ends(place.raw)
    done = 0
    for number, record in reader.last(place.output, reader.ends(place.output)).items():
        frame = decode(record.value(), WINDOWS_SCHEMA)
        done += min(frame.through + 1, raw[number])
    return done / sum(raw.values())


def _predictions(place: Place, reader: Reader) -> float:
    """By predictions, of which every row has one; complete once the windows are, too."""
    published = sum(reader.ends(place.prefix + "predictions").values()) / place.log.ticks
    return published if published < 1.0 else min(1.0, _frames(place, reader))


def _rows(place: Place, reader: Reader) -> float:
    """By rows, one a message; nobody but us closes the last second without a tick behind it."""
    expected = place.log.ticks - place.log.symbols
    return min(1.0, sum(reader.ends(place.output).values()) / expected)


def _none(place: Place, reader: Reader) -> float:
    """For those that end once they are done: whether anything came out at all."""
    return 1.0 if sum(reader.ends(place.output).values()) else 0.0


# -- ours -------------------------------------------------------------------


SESSION_S = "20"
"""A virtual machine whose host stops it for more than half a session loses its worker, as it must, and the measurement with it."""


def line_environment(place: Place, *, archive: bool = True, model: bool = True) -> dict[str, str]:
    """The settings of a worker of the line."""
    return {
        "STOCKSTREAM_BROKER": place.broker.url, "STOCKSTREAM_TOPIC_PREFIX": place.prefix, "STOCKSTREAM_APP_ID": f"bench-{place.run}",
        "STOCKSTREAM_PARTITIONS": str(place.log.partitions), "STOCKSTREAM_ARCHIVE": f"file://{place.folder}/archive" if archive else "none",
        "STOCKSTREAM_MODELS": model_store() if model else f"file://{place.folder}/no-models", "STOCKSTREAM_STATE_DIR": str(place.folder / "state"),
        "STOCKSTREAM_SESSION_TIMEOUT_S": SESSION_S,
    }  # fmt: skip


FAUST = [sys.executable, "-m", "faust", "-A", "stockstream", "worker", "-l", "warn"]


def _line(name: str, title: str, *, archive: bool, web: bool = False) -> Contender:
    return Contender(
        name, title, "full",
        lambda place: [*FAUST, *(["--web-port", "0"] if web else ["--without-web"])],
        _predictions,
        lambda place: line_environment(place, archive=archive),
    )  # fmt: skip


def _loop(name: str, title: str, job: str, *, archive: bool, model: bool = True) -> Contender:
    def command(place: Place) -> list[str]:
        order = [sys.executable, "-m", "benchmarks.loop", "full" if not model else job, place.broker.servers, place.prefix, "--site", str(site_of("loop"))]
        order += ["--compression", load_settings().compression]         # the line's own
        order += ["--models", model_store()] if job == "full" and model else []
        order += ["--archive", str(place.folder / "archive"), "--archive-max-bytes", str(ARCHIVE_MAX_BYTES)] if archive else []
        return [*order, *(["--embedded"] if place.broker.embedded else [])]

    topics = ("windows", "alerts", "market", "predictions", "outcomes", "ticks.rejected") if job == "full" else ("windows", "ticks.rejected")
    return Contender(name, title, job, command, _none, topics=topics, ends_itself=True, keeps_state=False)


def _peer(name: str, title: str, script: str, environment: str, *, keeps_state: bool = True) -> Contender:
    """A peer in Python: `peers/<script>.py SERVERS INPUT OUTPUT APPLICATION FOLDER`."""

    def command(place: Place) -> list[str]:
        return [python_of(environment), str(PEERS / f"{script}.py"), place.broker.servers, place.raw, place.output, f"{name}-{place.run}", str(place.folder)]

    return Contender(name, title, "windows", command, _rows, topics=("windows",), keeps_state=keeps_state)


def _java(place: Place) -> list[str]:
    java = shutil.which("java")
    if java is None:
        raise BenchmarkError("Kafka Streams needs Java 17")
    order = [java, "-Xmx512m", "-cp", java_classpath(), "stockstream.Rolling", place.broker.servers, place.raw, place.output]
    return [*order, f"streams-{place.run}", str(place.folder / "streams")]


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        _line("line", "(a) full line, archive", archive=True),
        _line("line-web", "(a) full line, archive, web tails", archive=True, web=True),
        _line("line-no-archive", "(b) line without archive", archive=False),
        _loop("loop", "(c) loop, archive", "full", archive=True),
        _loop("loop-no-archive", "(c) loop without archive", "full", archive=False),
        _loop("loop-windows", "(c) loop, windows only", "windows", archive=False),
        _loop("loop-same", "(c) loop, the line's own clean and windows", "windows", archive=False, model=False),
        Contender(
            "line-windows", "line, clean and aggregate", "windows",
            lambda place: [sys.executable, "-m", "benchmarks.line", "agents.clean,agents.aggregate", "worker", "-l", "warn", "--without-web"],
            _frames, lambda place: line_environment(place, archive=False, model=False),
        ),
        _peer("quixstreams", "(d) QuixStreams", "quix", "quixstreams"),
        _peer("bytewax", "(e) Bytewax", "bytewax_flow", "bytewax"),
        _peer("pathway", "(e) Pathway", "pathway_flow", "pathway"),
        _peer("faststream", "(f) FastStream, no state", "faststream_app", "faststream", keeps_state=False),
        _peer("faust", "(g) plain Faust", "plain_faust", "faust"),
        Contender("kafka-streams", "(h) Kafka Streams", "windows", _java, _rows, topics=("windows",)),
    )
}  # fmt: skip
LETTERS = {
    "a": ("line",), "b": ("line-no-archive",), "c": ("loop", "loop-no-archive"), "d": ("quixstreams",), "e": ("bytewax", "pathway"), "f": ("faststream",),
    "g": ("faust",), "h": ("kafka-streams",), "peers": ("loop-windows", "loop-same", "line-windows"),
}  # fmt: skip
"""The letters of the comparison; `peers` is what the peers are compared with."""


def chosen(text: str) -> list[Contender]:
    """Contenders by letter or name, by comma, each once; (c) of the peers' job comes along with any peer. Raises `BenchmarkError`."""
    names: list[str] = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        if part not in LETTERS and part not in CONTENDERS:
            raise BenchmarkError(f"{part!r} is no contender; there are {', '.join(LETTERS)}, or by name {', '.join(CONTENDERS)}")
        names += LETTERS.get(part, (part,))
    if any(CONTENDERS[name].job == "windows" for name in names):
        names.append("loop-windows")
    return [CONTENDERS[name] for name in dict.fromkeys(names)]
