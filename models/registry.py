"""Stores models: `<root>/<name>/<version>/` holds a model's files and `metadata.json`; `<root>/<name>/champion` names the version that scores.

A version is `<UTC time>-<hash of the files>`, so versions sort by age. A version appears atomically (written elsewhere, then renamed) and never changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from models import ScoringModel, features

METADATA = "metadata.json"
CHAMPION = "champion"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{8}")
_LIBRARIES = ("numpy", "pyarrow", "xgboost-cpu", "xgboost")


class RegistryError(Exception):
    """A model cannot be stored, found or loaded. Its text is one line."""


def _load_xgboost(name: str, version: str, feature_hash: str, files: Mapping[str, bytes]) -> ScoringModel:
    from models import xgboost  # takes a second, and not every user of the registry loads a model

    return xgboost.load(name, version, feature_hash, files)


LOADERS: dict[str, Callable[[str, str, str, Mapping[str, bytes]], ScoringModel]] = {"xgboost": _load_xgboost}
"""By kind of model: makes a model from its name, version, feature hash and files. Raises `ValueError`, `KeyError` or `TypeError` if the files are invalid."""


@dataclass(frozen=True)
class Entry:
    """A stored model: its folder and its metadata."""

    name: str
    version: str
    path: Path
    metadata: dict[str, Any]


class Registry:
    """Models in a folder: `file://path`, in which `%xx` is decoded, or a plain path, absolute or relative to the working directory.

    Raises `RegistryError` for a URL of another kind.
    """

    def __init__(self, url: str) -> None:
        path = unquote(url.removeprefix("file://")) if url.startswith("file://") else url
        if not path or path == "none" or "://" in path:
            raise RegistryError(f"models are kept in a folder, path or file://path, not {url!r}")
        self.root = Path(path).absolute()

    def store(self, name: str, kind: str, files: Mapping[str, bytes], metadata: Mapping[str, Any], *, now: datetime | None = None) -> Entry:
        """Stores a model without promoting it. `kind` is a key of `LOADERS`. Raises `RegistryError`.

        `metadata` holds `horizons_s`, `training`, `metrics`. The features, the libraries' versions and the time are added.
        """
        folder = self._folder(name)
        made = (now or datetime.now(UTC)).astimezone(UTC)
        digest = hashlib.sha256()
        for file in sorted(files):
            digest.update(file.encode() + b"\0" + len(files[file]).to_bytes(8, "big") + files[file])
        version = f"{made:%Y%m%dT%H%M%S}.{made.microsecond // 1000:03d}Z-{digest.hexdigest()[:8]}"
        full = {
            "name": name, "version": version, "kind": kind, "created_at": made.isoformat(timespec="milliseconds"),
            "features": list(features.FEATURES), "feature_hash": features.feature_hash(), **metadata,
            "libraries": _versions(), "files": {file: hashlib.sha256(files[file]).hexdigest() for file in sorted(files)},
        }  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
            try:
                for file, data in {**files, METADATA: json.dumps(full, indent=1).encode()}.items():
                    _write(beside / file, data)
                beside.chmod(0o755)
                beside.rename(folder / version)
            except OSError:
                shutil.rmtree(beside, ignore_errors=True)
                raise
            _sync(folder)
        except OSError as error:
            raise RegistryError(f"cannot store model {name} under {folder}: {error.strerror or error}") from error
        return Entry(name, version, folder / version, full)

    def prepare(self, name: str) -> None:
        """Creates the model's folder, so that an error of `store` shows before the training. Raises `RegistryError`."""
        folder = self._folder(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Path(tempfile.mkdtemp(prefix=".new-", dir=folder)).rmdir()
        except OSError as error:
            raise RegistryError(f"cannot store models under {folder}: {error.strerror or error}") from error

    def promote(self, name: str, version: str) -> None:
        """Makes a stored version the champion. Raises `RegistryError`."""
        self.entry(name, version)
        folder = self._folder(name)
        handle, beside = tempfile.mkstemp(prefix=".new-", dir=folder)
        os.close(handle)
        try:
            _write(Path(beside), version.encode() + b"\n")
            Path(beside).replace(folder / CHAMPION)
            _sync(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                Path(beside).unlink()
            raise RegistryError(f"cannot make {name} {version} the champion: {error.strerror or error}") from error

    def champion(self, name: str) -> str | None:
        """The champion's version; None if there is none. Raises `RegistryError` if it cannot be read."""
        try:
            version = (self._folder(name) / CHAMPION).read_text().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryError(f"the champion of {name} cannot be read: {error}") from error
        if not _VERSION.fullmatch(version):
            raise RegistryError(f"{self._folder(name) / CHAMPION} holds no version: {version[:60]!r}")
        return version

    def names(self) -> list[str]:
        """Names with at least one version."""
        try:
            return sorted(path.name for path in self.root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name) and self.versions(path.name))
        except FileNotFoundError:
            return []

    def versions(self, name: str) -> list[str]:
        """Versions of a model, oldest first; empty if there are none."""
        try:
            return sorted(path.name for path in self._folder(name).iterdir() if _VERSION.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def latest(self, name: str) -> str | None:
        """The newest version; None if there is none."""
        return max(self.versions(name), default=None)

    def entry(self, name: str, version: str | None = None) -> Entry:
        """A stored model's metadata: of `version`, else of the champion, else of the newest version. Raises `RegistryError`."""
        version = version or self.champion(name) or self.latest(name)
        if version is None:
            raise RegistryError(f"there is no model {name!r} under {self.root}: train one with `stockstream train xgboost`")
        path = self._folder(name) / version
        try:
            metadata = json.loads((path / METADATA).read_bytes()) if _VERSION.fullmatch(version) else None
        except FileNotFoundError:
            metadata = None
        except (OSError, ValueError) as error:
            raise RegistryError(f"the metadata of model {name} {version} cannot be read: {error}") from error
        if metadata is None:
            raise RegistryError(f"model {name!r} has no version {version!r} under {self.root}")
        if not isinstance(metadata, dict):
            raise RegistryError(f"the metadata of model {name} {version} is no JSON object")
        return Entry(name, version, path, metadata)

    def load(self, name: str, version: str | None = None) -> ScoringModel:
        """Loads `version`, else the champion, else the newest version. Raises `RegistryError`, also if a file differs from the one stored."""
        entry = self.entry(name, version)
        found, ours = entry.metadata.get("feature_hash"), features.feature_hash()
        if found != ours:
            raise RegistryError(f"model {name} {entry.version} was trained on other features (its hash {found}, this program's {ours}): train it again")
        kind = str(entry.metadata.get("kind"))
        if kind not in LOADERS:
            raise RegistryError(f"model {name} {entry.version} has the kind {kind!r}, which this release cannot load; known: {', '.join(sorted(LOADERS))}")
        try:
            files = {file: (entry.path / file).read_bytes() for file in entry.metadata["files"]}
            for file, digest in entry.metadata["files"].items():
                if hashlib.sha256(files[file]).hexdigest() != digest:
                    raise RegistryError(f"model {name} {entry.version}: {file} is not what was stored")
            return LOADERS[kind](name, entry.version, ours, files)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RegistryError(f"model {name} {entry.version} cannot be loaded: {error}") from error

    def stamp(self, name: str, version: str) -> str:
        """A hash that changes with the version's files, and each time the version is promoted. Raises `RegistryError`."""
        folder, digest = self._folder(name), hashlib.sha256()
        try:
            paths = sorted((folder / version).iterdir()) if _VERSION.fullmatch(version) else []
            if self.champion(name) == version:
                paths.append(folder / CHAMPION)
            for path in paths:
                found = path.stat()
                digest.update(f"{path.name}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}\0".encode())
        except FileNotFoundError:
            raise RegistryError(f"model {name!r} has no version {version!r} under {self.root}") from None
        except OSError as error:
            raise RegistryError(f"model {name} {version} cannot be read: {error}") from error
        return digest.hexdigest()[:16]

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise RegistryError(f"{name!r} is no model name: letters, digits, dot, dash and underscore, 64 at most")
        return self.root / name


def _versions() -> dict[str, str]:
    out = {}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[library] = importlib.metadata.version(library)
    return out


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes a rename in `folder` survive a power failure, if the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
