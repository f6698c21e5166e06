from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models import features
from models.registry import Registry, RegistryError
from models.xgboost import XGBoostModel, train_horizon

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(300, len(features.FEATURES))).astype(np.float32)
    return XGBoostModel("", "", "", (train_horizon(10, matrix, rng.normal(size=300), rounds=2),)).files()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"file://{tmp_path}/models")


def store(registry: Registry, files: dict[str, bytes], days: int = 0) -> str:
    return registry.store("xgboost", "xgboost", files, {"horizons_s": [10], "metrics": {}}, now=NOW + timedelta(days=days)).version


def test_what_is_stored_comes_back(registry: Registry, files: dict[str, bytes]) -> None:
    version = store(registry, files)
    assert version.startswith("20260102T030405.678Z-")
    model = registry.load("xgboost")
    assert (model.name, model.version, model.horizons_s, model.feature_hash) == ("xgboost", version, (10,), features.feature_hash())
    metadata = registry.entry("xgboost").metadata
    assert metadata["features"] == list(features.FEATURES) and metadata["created_at"].startswith("2026-01-02T03:04:05.678")
    assert "numpy" in metadata["libraries"] and set(metadata["files"]) == set(files)


def test_versions_sort_by_age_and_the_champion_is_who_was_promoted(registry: Registry, files: dict[str, bytes]) -> None:
    old, new = store(registry, files), store(registry, files, days=1)
    assert registry.versions("xgboost") == [old, new] and registry.latest("xgboost") == new and registry.names() == ["xgboost"]
    assert registry.champion("xgboost") is None and registry.entry("xgboost").version == new
    registry.promote("xgboost", old)
    assert registry.champion("xgboost") == old and registry.load("xgboost").version == old
    assert registry.load("xgboost", new).version == new
    registry.promote("xgboost", new)
    assert registry.champion("xgboost") == new


def test_nothing_half_written_is_seen_and_nothing_is_left(registry: Registry, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    store(registry, files)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RegistryError, match=r"cannot store model xgboost under .*: No space left on device"):
        store(registry, files, days=1)
    monkeypatch.undo()
    assert len(list((registry.root / "xgboost").iterdir())) == 1


def test_a_stranger_may_read_what_is_stored(registry: Registry, files: dict[str, bytes]) -> None:
    path = registry.root / "xgboost" / store(registry, files)
    assert stat.S_IMODE(path.stat().st_mode) & 0o055 == 0o055


def test_another_feature_set_is_refused(registry: Registry, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    store(registry, files)
    monkeypatch.setattr(features, "DEFINITIONS_VERSION", 99)
    with pytest.raises(RegistryError, match=r"was trained on other features .*: train it again"):
        registry.load("xgboost")


def test_damage_is_reported(registry: Registry, files: dict[str, bytes]) -> None:
    path = registry.root / "xgboost" / store(registry, files)
    (path / "up_10s.ubj").write_bytes(b"x")
    with pytest.raises(RegistryError, match=r"up_10s.ubj is not what was stored"):
        registry.load("xgboost")
    (path / "up_10s.ubj").unlink()
    with pytest.raises(RegistryError, match="cannot be loaded"):
        registry.load("xgboost")
    metadata = json.loads((path / "metadata.json").read_text())
    (path / "up_10s.ubj").write_bytes(files["up_10s.ubj"])
    (path / "metadata.json").write_text(json.dumps(metadata | {"kind": "oracle"}))
    with pytest.raises(RegistryError, match="has the kind 'oracle', which this release cannot load; known: xgboost"):
        registry.load("xgboost")
    (path / "metadata.json").write_text("{")
    with pytest.raises(RegistryError, match=r"metadata of model xgboost .* cannot be read"):
        registry.load("xgboost")


@pytest.mark.parametrize("pointer", ["", "../../etc", "20260102T030405.678Z-00000000"])
def test_a_champion_that_is_not_there(registry: Registry, files: dict[str, bytes], pointer: str) -> None:
    store(registry, files)
    (registry.root / "xgboost" / "champion").write_text(pointer)
    with pytest.raises(RegistryError, match=r"holds no version|has no version"):
        registry.load("xgboost")


def test_no_model_and_no_name(registry: Registry) -> None:
    assert registry.versions("xgboost") == [] and registry.latest("xgboost") is None and registry.names() == []
    with pytest.raises(RegistryError, match=r"no model 'xgboost' .*train one with `stockstream train xgboost`"):
        registry.load("xgboost")
    with pytest.raises(RegistryError, match="has no version"):
        registry.promote("xgboost", "../x")
    with pytest.raises(RegistryError, match="is no model name"):
        registry.load("../x")
    with pytest.raises(RegistryError, match="file://path"):
        Registry("s3://bucket")


def test_a_relative_path_is_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    monkeypatch.chdir(tmp_path)
    store(Registry("file://./data/models"), files)
    assert (tmp_path / "data" / "models" / "xgboost").is_dir()
