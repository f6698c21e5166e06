"""Opens the registry of models, in a folder or in a bucket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from models.registry import METADATA, Registry, RegistryError
from stockstream.errors import ArchiveError, SettingsError
from stockstream.locations import S3_URL
from stockstream.settings import Settings, load_settings
from stockstream.sinks.s3 import PROBE, MissingObject, S3Access, S3Store


def open_registry(url: str, settings: Settings | None = None) -> Registry:
    """The registry in a folder or under `s3://bucket/prefix`. `settings` (by default those of the environment) have the way to a bucket.

    Raises `RegistryError`.
    """
    if not url.startswith(S3_URL):
        return Registry(url)
    try:
        return Registry(Bucket(S3Store(url, S3Access.of(settings or load_settings()))))
    except SettingsError as error:
        raise RegistryError(f"models: {error}") from error


class Bucket:
    """A `models.places.Place` in a bucket. A version is complete once it has its metadata, which are created last."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self.where = store.url

    def read(self, path: str) -> bytes:
        with _as_os_errors():
            return self._store.read(path)

    def folders(self, below: str) -> list[str]:
        prefix = f"{below}/" if below else ""
        with _as_os_errors():
            names = list(self._store.list(prefix))
        return list({name.removeprefix(prefix).split("/")[0] for name in names if not below or name.endswith(f"/{METADATA}")})

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        for file, data in files.items():
            name = f"{folder}/{file}"
            with _as_os_errors():
                created = self._store.create(name, data)
            if not created:
                raise FileExistsError(f"{self.where}/{name} exists already")

    def replace(self, path: str, data: bytes) -> None:
        with _as_os_errors():
            self._store.replace(path, data)

    def prepare(self, folder: str) -> None:
        with _as_os_errors():
            self._store.create(f"{folder}/{PROBE}", b"")

    def marks(self, path: str) -> list[str]:
        with _as_os_errors():
            found = [one for one in self._store.entries(path) if one.name == path or one.name.startswith(f"{path}/")]
        if not found:
            raise FileNotFoundError(f"{self.where}/{path}")
        return [f"{one.name}\0{one.size}\0{one.modified.timestamp()}\0{one.tag}\0" for one in found]


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raises the store's errors as those of a `Place`."""
    try:
        yield
    except MissingObject as error:
        raise FileNotFoundError(str(error)) from error
    except ArchiveError as error:
        raise OSError(str(error)) from error
