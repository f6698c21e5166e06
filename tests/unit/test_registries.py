"""The registry of models in a bucket does what the one in a folder does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from models import features
from models.places import Folder, Place
from models.registry import CHAMPION, METADATA, Registry, RegistryError
from models.xgboost import XGBoostModel, train_horizon
from stockstream.application import require_places
from stockstream.champions import Champions
from stockstream.commands.train import command as train
from stockstream.errors import SettingsError
from stockstream.registries import Bucket, open_registry
from stockstream.settings import Settings
from stockstream.sinks.s3 import S3Access, S3Store
from tests.standins.s3 import S3Server, s3_server

URL = "s3://bucket/models"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(300, len(features.FEATURES))).astype(np.float32)
    return XGBoostModel("", "", "", (train_horizon(10, matrix, rng.normal(scale=1e-3, size=300), rounds=2, seed=1),)).files()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(monkeypatch) as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Folder(tmp_path / "models")
    server: S3Server = request.getfixturevalue("server")
    return Bucket(S3Store(URL, S3Access(server.endpoint)))


def store(registry: Registry, files: dict[str, bytes], day: int = 1) -> str:
    return registry.store("xgboost", "xgboost", files, {"horizons_s": [10], "metrics": {}}, now=datetime(2026, 1, day, tzinfo=UTC)).version


def test_versions_and_the_champion(place: Place, files: dict[str, bytes]) -> None:
    registry = Registry(place)
    registry.prepare("xgboost")
    assert (registry.names(), registry.versions("xgboost"), registry.champion("xgboost")) == ([], [], None)
    one, two = store(registry, files), store(registry, files, 2)
    assert registry.names() == ["xgboost"] and registry.versions("xgboost") == [one, two] and registry.latest("xgboost") == two
    before = registry.stamp("xgboost", one)
    registry.promote("xgboost", one)
    assert registry.champion("xgboost") == one and registry.stamp("xgboost", one) != before
    assert registry.load("xgboost").version == one and registry.load("xgboost", two).version == two
    registry.promote("xgboost", two)
    assert registry.champion("xgboost") == two and registry.stamp("xgboost", one) == before
    for call in (registry.load, registry.stamp, registry.promote):
        with pytest.raises(RegistryError, match="has no version"):
            call("xgboost", "20250101T000000.000Z-00000000")


def test_a_version_that_is_half_there_is_none(server: S3Server, files: dict[str, bytes]) -> None:
    place = Bucket(S3Store(URL, S3Access(server.endpoint)))
    registry = Registry(place)
    version = store(registry, files)
    server.client.delete_object(Bucket="bucket", Key=f"models/xgboost/{version}/{METADATA}")
    assert registry.versions("xgboost") == [] and registry.names() == []
    place.replace(f"xgboost/{CHAMPION}", b"nonsense")
    with pytest.raises(RegistryError, match=rf"^{URL}/xgboost/champion holds no version: 'nonsense'$"):
        registry.champion("xgboost")


@pytest.mark.slow
def test_a_worker_keeps_its_model_while_the_bucket_is_away(server: S3Server, files: dict[str, bytes]) -> None:
    settings = Settings(models=URL, s3_endpoint=server.endpoint)
    registry = open_registry(URL, settings)
    champions = Champions(URL, "xgboost", partial(open_registry, settings=settings))
    champions.refresh()
    assert champions.problem == f"there is no model xgboost in {URL}; train one with `stockstream train xgboost`"
    version = store(registry, files)
    registry.promote("xgboost", version)
    champions.refresh()
    assert champions.champion and champions.champion.key == ("xgboost", version) and champions.problem == ""
    server.stop()
    champions.refresh()
    assert champions.champion and "no answer from" in champions.problem and "\n" not in champions.problem
    server.start()
    champions.refresh()
    assert champions.problem == ""


def test_training_stores_into_the_bucket(server: S3Server) -> None:
    result = CliRunner().invoke(train, ["xgboost", "--simulated", "--symbols", "8", "--minutes", "15", "--rounds", "5", "--models", URL, "--json"])
    assert result.exit_code == 0, result.output
    version = json.loads(result.stdout)["version"]
    assert open_registry(URL).champion("xgboost") == version


def test_a_start_checks_the_bucket_of_models(server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(archive="none", models="s3://no-bucket/x", s3_endpoint=server.endpoint, state_dir=tmp_path)
    with pytest.raises(SettingsError, match=r"^STOCKSTREAM_MODELS: s3://no-bucket/x: cannot list its objects: there is no such bucket$"):
        require_places(settings)
    require_places(settings.model_copy(update={"models": URL}))
    server.stop()
    require_places(settings.model_copy(update={"models": URL}))
    assert "no answer from" in caplog.text and "(STOCKSTREAM_MODELS)" in caplog.text
    with pytest.raises(RegistryError, match="is not s3://bucket"):
        open_registry("s3://", settings)
