from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from models.registry import Registry
from stockstream.commands.train import command, train_first_model
from stockstream.errors import ModelError, SourceError, StockstreamError
from stockstream.settings import Settings


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["xgboost", *arguments])


def day(path: Path, start: str, seed: int = 0) -> Path:
    """25 minutes of two symbols in one-second bars."""
    rng = np.random.default_rng(seed)
    times = pd.date_range(start, periods=1_500, freq="s", tz="UTC").as_unit("ms")
    frames = []
    for symbol in "AB":
        price = np.round(100 * np.exp(np.cumsum(1e-4 * rng.normal(size=len(times)))), 2)
        frames.append(pd.DataFrame({"symbol": symbol, "event_time": times, "close": price, "volume": 100.0, "bid": price - 0.01, "ask": price + 0.01}))
    pd.concat(frames).sort_values("event_time", kind="stable").to_parquet(path)
    return path


def test_bars_make_a_champion_and_its_numbers_are_reported(tmp_path: Path) -> None:
    monday, tuesday = day(tmp_path / "monday.parquet", "2026-01-05 14:30"), day(tmp_path / "tuesday.parquet", "2026-01-06 14:30", 1)
    url = f"file://{tmp_path}/models"
    result = run("--from", str(monday), str(tuesday), "--models", url, "--name", "first", "--horizons", "5", "--rounds", "5")
    assert result.exit_code == 0, result.output
    assert "5 s ahead" in result.stdout and "correlation" in result.stdout and "simulation" not in result.stdout
    registry = Registry(url)
    model = registry.load("first")
    assert model.version == registry.champion("first") and model.version in result.stdout and model.horizons_s == (5,)
    about = registry.entry("first").metadata["training"]
    assert about["source"] == "real" and [file["file"] for file in about["files"]] == ["monday.parquet", "tuesday.parquet"]
    assert about["first_second_s"] == 1_767_623_400 and about["rows"]["train"] > about["rows"]["test"] > 0

    result = run("--from", str(monday), "--test", str(tuesday), "--models", url, "--horizons", "5", "--rounds", "5", "--json")
    metadata = json.loads(result.stdout)
    assert metadata["training"]["test_from_s"] == 1_767_709_800 and metadata["training"]["rows"]["test"] > 2_900
    assert metadata["metrics"]["5"]["n"] == metadata["training"]["rows"]["test"]


def test_simulation_says_so(tmp_path: Path) -> None:
    result = run("--simulated", "--symbols", "8", "--minutes", "15", "--rounds", "5", "--models", f"file://{tmp_path}")
    assert result.exit_code == 0, result.output
    assert "was trained on simulated data" in result.stdout
    assert Registry(f"file://{tmp_path}").entry("xgboost").metadata["training"]["source"] == "simulated"


def test_the_demos_first_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.commands.train.FIRST_MODEL_MINUTES", 15)
    messages: list[str] = []
    made = train_first_model(Settings(models=f"file://{tmp_path}", model="m"), [f"S{i}" for i in range(8)], report=messages.append)
    assert made.simulated and Registry(f"file://{tmp_path}").champion("m") == made.entry.version and messages
    assert any("simulated" in sentence for sentence in made.sentences())
    numbers = {"n": 1_200, "moved": 0, "correlation": None, "sign_hit_rate": None, "brier": 0.25, "brier_baseline": 0.25}
    assert "1,200 held-out predictions: correlation unknown, no price moved; p_up" in replace(made, metrics={"10": numbers}).sentences()[0]
    moving = numbers | {"moved": 1, "sign_hit_rate": 1.0}
    assert "sign right in 100.0% of 1 move; p_up" in replace(made, metrics={"10": moving}).sentences()[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "name recordings with --from"),
        (("--simulated", "--from", "x.csv"), "name recordings with --from"),
        (("--simulated", "--horizons", "ten"), "not a list of seconds"),
        (("--simulated", "--horizons", "10,600"), "horizons are 1 to 127 s"),
        (("--simulated", "--minutes", "1"), "--minutes"),
    ],
)
def test_wrong_use_is_one_line(arguments: tuple[str, ...], line: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and line in result.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "line"),
    [
        (("--from", "missing.parquet"), SourceError, "missing.parquet: no such file"),
        (("--simulated", "--models", "gs://x"), StockstreamError, "is not file://path"),
        (("--simulated", "--models", "file:///dev/null/x"), ModelError, "cannot store models under /dev/null/x/xgboost: Not a directory"),
        (("--simulated", "--models", "file://MODELS", "--name", "../x"), StockstreamError, "is no model name"),
    ],
)
def test_what_cannot_be_done_is_one_error(tmp_path: Path, arguments: tuple[str, ...], kind: type[Exception], line: str) -> None:
    result = run(*(argument.replace("MODELS", str(tmp_path)) for argument in arguments))
    assert isinstance(result.exception, kind) and line in str(result.exception) and "\n" not in str(result.exception)


def test_the_same_file_twice_is_reported(tmp_path: Path) -> None:
    path = str(day(tmp_path / "day.parquet", "2026-01-05 14:30"))
    result = run("--from", path, path, "--models", f"file://{tmp_path}/m")
    assert isinstance(result.exception, ModelError) and "do the files overlap?" in str(result.exception)
