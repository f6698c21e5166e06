"""The settings on which the verdicts of `clean` depend: as a worker records them in raw objects, and as they are used to compute the verdicts again."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UnsetType

from stockstream.errors import ArchiveError
from stockstream.settings import Settings
from stockstream.sinks.archive.raw_objects import CleanSettings
from stockstream.transforms.cleaning.raw_format import RawFormat
from stockstream.transforms.timing import Lateness


def clean_settings(settings: Settings) -> CleanSettings:
    """Those of this process."""
    formats = settings.foreign_messages
    return CleanSettings(settings.lateness_ms, settings.revise_s, settings.partitions, formats.identity if formats else "")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a `Cleaner` of one log needs to give the same verdicts again."""

    lateness: Lateness
    revise_s: int
    partitions: int
    raw_format: RawFormat | None


class KnownSettings:
    """Finds the settings of a raw object: those that it records, else those of this process."""

    def __init__(self, settings: Settings) -> None:
        self._formats = settings.foreign_messages
        self.own = clean_settings(settings)

    def of(self, recorded: CleanSettings | UnsetType, name: str) -> Verdicts:
        """Raises `ArchiveError` if the object `name` needs another format of foreign messages than STOCKSTREAM_RAW_FORMAT has here."""
        used = self.own if isinstance(recorded, UnsetType) else recorded
        if used.raw_format != self.own.raw_format:
            wanted = f"means {used.raw_format}" if used.raw_format else "is empty"
            raise ArchiveError(f"{name}: its verdicts were made where STOCKSTREAM_RAW_FORMAT {wanted}; here it means {self.own.raw_format or 'nothing'}")
        try:
            lateness = Lateness.parse(used.lateness_ms)
        except ValueError as error:
            raise ArchiveError(f"{name}: the recorded lateness: {error}") from error
        return Verdicts(lateness, used.revise_s, used.partitions, self._formats)
