"""The models that a worker scores with: what the registry calls champion, what can be loaded, and why not where it cannot."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from models import ScoringModel
from models.registry import Registry
from stockstream.errors import ModelError
from stockstream.skipped import shortened
from stockstream.transforms.scoring.asking import require_usable
from stockstream.transforms.scoring.roster import Key

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model in memory. `stamp` says which artefact it came from, `metadata` is what the registry keeps with it."""

    model: ScoringModel
    stamp: str
    metadata: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.model.name, self.model.version


class Champions:
    """Looks at the registry again and again, and never raises because of what it finds.

    `champion` is the registry's champion, or the one before where that cannot be loaded; None where there was none. `version` is the version that the
    registry names now ("" where it names none), and `problem` says in one line why it is not `champion`.

    Args:
        url: the registry's address.
        name: of the model.
    """

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.champion: Loaded | None = None
        self.version = ""
        self.problem = "the registry of models was not read yet"
        self._loaded: dict[Key, Loaded] = {}
        self._failed: dict[Key, tuple[str, str]] = {}
        """By model: the stamp of what could not be loaded, and why."""

    def refresh(self) -> None:
        """Looks which version is champion now, and loads it."""
        version, problem = "", ""
        try:
            registry = Registry(self.url)
            version = registry.champion(self.name) or ""
            if not version:
                problem = f"there is no model {self.name} in {registry.root}: `stockstream train xgboost --help` says how to make one"
            else:
                champion = self.champion
                if champion is None or (*champion.key, champion.stamp) != (self.name, version, registry.stamp(self.name, version)):
                    self.champion = self.load(self.name, version)
        except Exception as error:  # noqa: BLE001 (whatever lies in the registry must not end the worker; it is said)
            problem = f"the champion {f'{self.name} {version}' if version else self.name} cannot be loaded: {in_one_line(error)}"
        self.version, self.problem = version, problem

    def load(self, name: str, version: str) -> Loaded:
        """A stored version, read again only where its files have changed. Raises `ModelError`."""
        key = name, version
        try:
            registry = Registry(self.url)
            stamp = registry.stamp(name, version)
            known = self._loaded.get(key)
            if known is not None and known.stamp == stamp:
                return known
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
        """What the registry kept with a model that is loaded; empty for any other."""
        loaded = self._loaded.get(key)
        return loaded.metadata if loaded else {}

    def keep(self, keys: Iterable[Key]) -> None:
        """Forgets all models but these and the champion, and what is known of those that could not be loaded but for the registry's champion."""
        kept = set(keys) | ({self.champion.key} if self.champion else set())
        self._loaded = {key: loaded for key, loaded in self._loaded.items() if key in kept}
        self._failed = {key: why for key, why in self._failed.items() if key in kept or key == (self.name, self.version)}


def in_one_line(error: Exception) -> str:
    """What an error says, for a log or an answer."""
    return shortened(str(error) or type(error).__name__)
