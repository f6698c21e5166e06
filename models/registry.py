"""Stores models: `<root>/<name>/<version>/` holds a model's files and `metadata.json`; `<root>/<name>/champion` names the version that scores.

A version is `<UTC time>-<hash of the files>`, so versions sort by age. A version appears atomically and never changes. `models.places` is where `<root>` is.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from models import ScoringModel, features
from models.places import Folder, Place

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
    """A stored model: where it is, and its metadata."""

    name: str
    version: str
    path: str
    metadata: dict[str, Any]


class Registry:
    """Models in a folder: `file://path`, in which `%xx` is decoded, or a plain path, absolute or relative to the working directory; or in another `Place`.

    Raises `RegistryError` for a URL of another kind.
    """

    def __init__(self, at: str | Place) -> None:
        if not isinstance(at, str):
            self._place: Place = at
            return
        path = unquote(at.removeprefix("file://")) if at.startswith("file://") else at
        if not path or path == "none" or "://" in path:
            raise RegistryError(f"models are kept in a folder, path or file://path, not {at!r}")
        self._place = Folder(Path(path))

    @property
    def where(self) -> str:
        """The place of all models, for messages."""
        return self._place.where

    @property
    def root(self) -> Path:
        """The folder of all models, where they are in a folder."""
        assert isinstance(self._place, Folder)
        return self._place.root

    def store(self, name: str, kind: str, files: Mapping[str, bytes], metadata: Mapping[str, Any], *, now: datetime | None = None) -> Entry:
        """Stores a model without promoting it. `kind` is a key of `LOADERS`. Raises `RegistryError`.

        `metadata` holds `horizons_s`, `training`, `metrics`. The features, the libraries' versions and the time are added.
        """
        folder = _folder(name)
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
            self._place.add(f"{folder}/{version}", {**files, METADATA: json.dumps(full, indent=1).encode()})
        except OSError as error:
            raise RegistryError(f"cannot store model {name} under {self.where}/{folder}: {error.strerror or error}") from error
        return Entry(name, version, f"{self.where}/{folder}/{version}", full)

    def prepare(self, name: str) -> None:
        """Shows an error of `store` before the training. A folder is created. Raises `RegistryError`."""
        folder = _folder(name)
        try:
            self._place.prepare(folder)
        except OSError as error:
            raise RegistryError(f"cannot store models under {self.where}/{folder}: {error.strerror or error}") from error

    def promote(self, name: str, version: str) -> None:
        """Makes a stored version the champion. Raises `RegistryError`."""
        self.entry(name, version)
        try:
            self._place.replace(f"{_folder(name)}/{CHAMPION}", version.encode() + b"\n")
        except OSError as error:
            raise RegistryError(f"cannot make {name} {version} the champion: {error.strerror or error}") from error

    def champion(self, name: str) -> str | None:
        """The champion's version; None if there is none. Raises `RegistryError` if it cannot be read."""
        path = f"{_folder(name)}/{CHAMPION}"
        try:
            version = self._place.read(path).decode().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryError(f"the champion of {name} cannot be read: {error}") from error
        if not _VERSION.fullmatch(version):
            raise RegistryError(f"{self.where}/{path} holds no version: {version[:60]!r}")
        return version

    def names(self) -> list[str]:
        """Names with at least one version."""
        try:
            return sorted(name for name in self._place.folders("") if _NAME.fullmatch(name) and self.versions(name))
        except FileNotFoundError:
            return []

    def versions(self, name: str) -> list[str]:
        """Versions of a model, oldest first; empty if there are none."""
        try:
            return sorted(version for version in self._place.folders(_folder(name)) if _VERSION.fullmatch(version))
        except FileNotFoundError:
            return []

    def latest(self, name: str) -> str | None:
        """The newest version; None if there is none."""
        return max(self.versions(name), default=None)

    def entry(self, name: str, version: str | None = None) -> Entry:
        """A stored model's metadata: of `version`, else of the champion, else of the newest version. Raises `RegistryError`."""
        version = version or self.champion(name) or self.latest(name)
        if version is None:
            raise RegistryError(f"there is no model {name!r} under {self.where}: train one with `stockstream train xgboost`")
        path = f"{_folder(name)}/{version}"
        try:
            metadata = json.loads(self._place.read(f"{path}/{METADATA}")) if _VERSION.fullmatch(version) else None
        except FileNotFoundError:
            metadata = None
        except (OSError, ValueError) as error:
            raise RegistryError(f"the metadata of model {name} {version} cannot be read: {error}") from error
        if metadata is None:
            raise RegistryError(f"model {name!r} has no version {version!r} under {self.where}")
        if not isinstance(metadata, dict):
            raise RegistryError(f"the metadata of model {name} {version} is no JSON object")
        return Entry(name, version, f"{self.where}/{path}", metadata)

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
            files = {file: self._place.read(f"{_folder(name)}/{entry.version}/{file}") for file in entry.metadata["files"]}
            for file, digest in entry.metadata["files"].items():
                if hashlib.sha256(files[file]).hexdigest() != digest:
                    raise RegistryError(f"model {name} {entry.version}: {file} is not what was stored")
            return LOADERS[kind](name, entry.version, ours, files)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RegistryError(f"model {name} {entry.version} cannot be loaded: {error}") from error

    def stamp(self, name: str, version: str) -> str:
        """A hash that changes with the version's files, and each time the version is promoted. Raises `RegistryError`."""
        folder, digest = _folder(name), hashlib.sha256()
        try:
            marks = self._place.marks(f"{folder}/{version}") if _VERSION.fullmatch(version) else []
            if self.champion(name) == version:
                marks += self._place.marks(f"{folder}/{CHAMPION}")
            for mark in marks:
                digest.update(mark.encode())
        except FileNotFoundError:
            raise RegistryError(f"model {name!r} has no version {version!r} under {self.where}") from None
        except OSError as error:
            raise RegistryError(f"model {name} {version} cannot be read: {error}") from error
        return digest.hexdigest()[:16]


def _folder(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RegistryError(f"{name!r} is no model name: letters, digits, dot, dash and underscore, 64 at most")
    return name


def _versions() -> dict[str, str]:
    out = {}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[library] = importlib.metadata.version(library)
    return out
