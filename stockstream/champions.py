"""The models of a worker: the registry's champion, the models in memory, and why a model cannot be loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from models import ScoringModel
from models.registry import Registry
from stockstream.errors import ModelError
from stockstream.skipped import shortened
from stockstream.transforms.scoring.asking import require_usable
from stockstream.transforms.scoring.roster import Key

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model in memory. `stamp` identifies its artefact, `metadata` is the registry's."""

    model: ScoringModel
    stamp: str
    metadata: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.model.name, self.model.version


class Champions:
    """Follows the champion of a model in the registry. `refresh` never raises, even if the registry is damaged.

    `champion` is the registry's champion, or the previous one if that cannot be loaded; None if there was none. `version` is the version that the registry
    names now ("" if it names none), and `problem` gives in one line the reason why that version is not `champion`.

    Args:
        url: the registry's place.
        name: of the model.
        open_registry: opens the registry at a URL.
    """

    def __init__(self, url: str, name: str, open_registry: Callable[[str], Registry] = Registry) -> None:
        self.url, self.name = url, name
        self._open = open_registry
        self.champion: Loaded | None = None
        self.version = ""
        self.problem = "the model registry has not been read yet"
        self._loaded: dict[Key, Loaded] = {}
        self._failed: dict[Key, tuple[str, str]] = {}
        """By model that could not be loaded: the artefact's stamp, and the reason."""

    def refresh(self) -> None:
        """Reads which version is champion now, and loads it if it is new."""
        version, problem = "", ""
        try:
            registry = self._open(self.url)
            version = registry.champion(self.name) or ""
            if not version:
                problem = f"there is no model {self.name} in {registry.where}; train one with `stockstream train xgboost`"
            else:
                champion = self.champion
                if champion is None or (*champion.key, champion.stamp) != (self.name, version, registry.stamp(self.name, version)):
                    self.champion = self.load(self.name, version)
        except Exception as error:  # noqa: BLE001 (a faulty registry must not end the worker; `problem` reports it)
            problem = f"the champion {f'{self.name} {version}' if version else self.name} cannot be loaded: {in_one_line(error)}"
        self.version, self.problem = version, problem

    def load(self, name: str, version: str) -> Loaded:
        """Loads a stored version; it reads the files again only if they have changed. Raises `ModelError`."""
        key = name, version
        try:
            registry = self._open(self.url)
            stamp = registry.stamp(name, version)
            loaded = self._loaded.get(key)
            if loaded is not None and loaded.stamp == stamp:
                return loaded
            failed, why = self._failed.get(key, ("", ""))
            if failed == stamp:
                raise ModelError(why)
            try:
                metadata = registry.entry(name, version).metadata
                model = registry.load(name, version)
                require_usable(model)
            except Exception as error:
                self._failed[key] = stamp, in_one_line(error)
                raise
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(in_one_line(error)) from error
        self._failed.pop(key, None)
        self._loaded[key] = loaded = Loaded(model, stamp, metadata)
        return loaded

    def metadata(self, key: Key) -> dict[str, Any]:
        """The registry's metadata of a loaded model; empty for any other."""
        loaded = self._loaded.get(key)
        return loaded.metadata if loaded else {}

    def keep(self, keys: Iterable[Key]) -> None:
        """Unloads all models but these and the champion, and forgets the load failures of all others but the registry's champion."""
        kept = set(keys) | ({self.champion.key} if self.champion else set())
        self._loaded = {key: loaded for key, loaded in self._loaded.items() if key in kept}
        self._failed = {key: why for key, why in self._failed.items() if key in kept or key == (self.name, self.version)}


def in_one_line(error: Exception) -> str:
    """The text of an error on one line, for a log or a response."""
    return shortened(str(error) or type(error).__name__)
