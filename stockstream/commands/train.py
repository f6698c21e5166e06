"""`stockstream train`: trains a model on recorded or simulated history and stores it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from models import training
from models.registry import Entry, Registry, RegistryError
from models.xgboost import KIND, ROUNDS
from stockstream.errors import ModelError
from stockstream.history import read_ticks, window_rows
from stockstream.registries import open_registry
from stockstream.settings import Settings, load_settings
from stockstream.sources.simulated import SimulatedMarket
from stockstream.transforms.scoring.asking import RING_S
from stockstream.transforms.timing import WINDOW_S
from stockstream.wording import counted, utc_time

HORIZONS_S = (10, 60)
WARM_UP_S = WINDOW_S
"""Rows of the first five minutes of a simulation have no full window; they are left out, real recordings keep theirs."""
FIRST_MODEL_SYMBOLS = 20
FIRST_MODEL_MINUTES = 50
"""60,000 rows: a first model in well under 30 s on a small machine."""
SIMULATED_EPOCH_S = 1_700_000_000
"""The default end of a simulated history: a fixed time, so that the same seed gives the same model."""
SEED_STEP = 7_919
"""Training and live simulation have different seeds: a model must not have seen the market that it scores."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class TrainedModel:
    """A stored model, and the text that describes it."""

    entry: Entry
    metrics: dict[str, dict[str, Any]]
    simulated: bool

    def sentences(self) -> list[str]:
        """Its quality and its folder, one line each."""
        out = []
        for horizon, numbers in self.metrics.items():
            correlation = _share(numbers["correlation"], "{:+.3f}")
            hits = f"sign right in {numbers['sign_hit_rate']:.1%} of {counted(numbers['moved'], 'move')}" if numbers["moved"] else "no price moved"
            out.append(
                f"{horizon} s ahead, {counted(numbers['n'], 'held-out prediction')}: correlation {correlation}, "
                f"{hits}; p_up Brier {numbers['brier']:.4f} (constant baseline: {numbers['brier_baseline']:.4f})"
            )
        if self.simulated:
            out.append("This model was trained on simulated data, which has no signal to learn. It cannot predict real markets.")
        return [*out, f"stored as {self.entry.name} {self.entry.version} in {self.entry.path}"]


def train_files(
    registry: Registry, name: str, files: Sequence[Path], tests: Sequence[Path], horizons_s: Sequence[int], *, rounds: int = ROUNDS, threads: int = 1,
    report: Report,
) -> TrainedModel:  # fmt: skip
    """Trains on recordings of trades or bars; with `tests` it is measured on those, else on the last part of `files`. Raises `StockstreamError`."""
    described = []
    columns = []
    for group in (files, tests):
        tables = []
        for path in group:
            report(f"reading {path}")
            ticks = read_ticks(path)
            report(f"computing windows of {counted(ticks.num_rows, 'tick')}")
            tables.append(window_rows(ticks))
            described.append({"file": path.name, "ticks": ticks.num_rows, "rows": tables[-1].num_rows, "part": "test" if group is tests else "train"})
        columns.append(_columns(pa.concat_tables(tables)) if tables else None)
    assert columns[0] is not None
    return _train(registry, name, columns[0], columns[1], horizons_s, {"source": "real", "files": described}, rounds, threads, report)


def train_simulated(
    registry: Registry,
    name: str,
    symbols: Sequence[str],
    minutes: int,
    seed: int,
    horizons_s: Sequence[int],
    *,
    until_s: int = SIMULATED_EPOCH_S,
    rounds: int = ROUNDS,
    threads: int = 1,
    report: Report,
) -> TrainedModel:
    """Trains on `minutes` of a simulated market that ends at `until_s` (epoch s), after a warm-up of five minutes. Raises `StockstreamError`."""
    first = until_s - minutes * 60 - WARM_UP_S
    report(f"simulating {counted(minutes, 'minute')} of {counted(len(symbols), 'symbol')}")
    ticks = SimulatedMarket(seed, symbols).history(first, until_s - 1)
    report(f"computing windows of {counted(ticks.num_rows, 'tick')}")
    rows = window_rows(ticks)
    columns = _columns(rows)
    warm = columns["second"] >= first + WARM_UP_S
    columns = {key: values[warm] for key, values in columns.items()}
    about = {"source": "simulated", "seed": seed, "symbols": len(symbols), "minutes": minutes, "ticks": ticks.num_rows}
    return _train(registry, name, columns, None, horizons_s, about, rounds, threads, report)


def train_first_model(settings: Settings, symbols: Sequence[str], *, report: Report = lambda line: None) -> TrainedModel:
    """A first model for a demo without one: simulated history of some of its symbols, under another seed than the live market's. Raises `StockstreamError`.

    Takes some seconds of one core; it is stored in `settings.models` under `settings.model` and made the champion.
    """
    some = list(symbols[:FIRST_MODEL_SYMBOLS])
    registry = _registry(settings)
    return train_simulated(registry, settings.model, some, FIRST_MODEL_MINUTES, settings.seed + SEED_STEP, HORIZONS_S, report=report)


def _train(
    registry: Registry,
    name: str,
    columns: training.Columns,
    test: training.Columns | None,
    horizons_s: Sequence[int],
    about: dict[str, Any],
    rounds: int,
    threads: int,
    report: Report,
) -> TrainedModel:
    try:
        trained = training.train(columns, horizons_s, test=test, rounds=rounds, threads=threads, progress=report)
        both = [part["second"] for part in (columns, test) if part is not None and len(part["second"])]
        span = [int(min(second.min() for second in both)), int(max(second.max() for second in both))]
        split = {"calibrate_from_s": trained.split.calibrate_from, "test_from_s": int(both[-1].min()) if test is not None else trained.split.test_from}
        training_data = {**about, "rows": trained.rows, "first_second_s": span[0], "last_second_s": span[1], **split, "rounds": rounds}
        entry = registry.store(name, KIND, trained.files, {"horizons_s": list(trained.horizons_s), "training": training_data, "metrics": trained.metrics})
        registry.promote(name, entry.version)
    except (training.TrainingError, RegistryError) as error:
        raise ModelError(str(error)) from error
    return TrainedModel(entry, trained.metrics, about["source"] == "simulated")


def _columns(rows: pa.Table) -> training.Columns:
    try:
        return training.columns_of(rows)
    except training.TrainingError as error:
        raise ModelError(str(error)) from error


def _registry(settings: Settings) -> Registry:
    try:
        registry = open_registry(settings.models, settings)
        registry.prepare(settings.model)
        return registry
    except RegistryError as error:
        raise ModelError(str(error)) from error


def _share(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)


def _horizons(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        horizons = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of seconds such as 10,60") from None
    if not all(0 < horizon < RING_S for horizon in horizons):
        raise click.BadParameter(f"horizons are 1 to {RING_S - 1} s, not {value}")
    return horizons


@click.group()
def command() -> None:
    """Train a model and store it."""


@command.command("xgboost")
@click.option("--from", "files", multiple=True, type=click.Path(path_type=Path), help="Trades or one-second bars, Parquet or CSV; more files may follow.")
@click.option("--test", "tests", multiple=True, type=click.Path(path_type=Path), help="Later data to measure on; without it the last 15 % of --from is.")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.option("--models", default=None, help="Where models are: a folder, path or file://path, or s3://bucket/prefix.  [default: STOCKSTREAM_MODELS]")
@click.option("--name", default=None, help="The model's name.  [default: STOCKSTREAM_MODEL]")
@click.option("--horizons", default="10,60", show_default=True, callback=_horizons, help="Horizons in seconds, separated by commas.")
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1, 10_000), help="Trees of a horizon's return model.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 256), help="Threads to train with; more seldom helps on a busy machine.")
@click.option("--simulated", is_flag=True, help="Train on a simulated market instead of files.")
@click.option("--symbols", default=FIRST_MODEL_SYMBOLS, show_default=True, type=click.IntRange(1, 10_000), help="Simulated symbols.")
@click.option("--minutes", default=FIRST_MODEL_MINUTES, show_default=True, type=click.IntRange(5, 1_440), help="Simulated minutes.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Seed of the simulation.")
@click.option("--json", "as_json", is_flag=True, help="Print the stored metadata as JSON; progress goes to stderr.")
def train_xgboost(
    files: tuple[Path, ...],
    tests: tuple[Path, ...],
    more: tuple[Path, ...],
    models: str | None,
    name: str | None,
    horizons: tuple[int, ...],
    rounds: int,
    threads: int,
    simulated: bool,
    symbols: int,
    minutes: int,
    seed: int,
    as_json: bool,
) -> None:
    """Boosted trees for the return some seconds ahead, trained on recordings and measured on later time that they have not seen."""
    files = (*files, *more)
    if simulated == bool(files):
        raise click.UsageError("name recordings with --from FILE, or use --simulated")
    if tests and simulated:
        raise click.UsageError("--test needs --from")
    changes = {key: value for key, value in {"models": models, "model": name}.items() if value is not None}
    settings = load_settings(**changes)
    registry = _registry(settings)
    started = time.monotonic()

    def report(step: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f} s] {step}", err=True)

    if simulated:
        names = [f"SIM{number:05d}" for number in range(symbols)]
        trained = train_simulated(registry, settings.model, names, minutes, seed, horizons, rounds=rounds, threads=threads, report=report)
    else:
        trained = train_files(registry, settings.model, files, tests, horizons, rounds=rounds, threads=threads, report=report)
    if as_json:
        click.echo(json.dumps(trained.entry.metadata, indent=1))
        return
    if not simulated:
        span = trained.entry.metadata["training"]
        first, test = utc_time(1000 * span["first_second_s"]), utc_time(1000 * span["test_from_s"])
        click.echo(f"trained on {span['rows']['train']:,} rows from {first}, measured on time from {test}")
    for sentence in trained.sentences():
        click.echo(sentence)
