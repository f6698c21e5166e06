"""Checks compactions, and knows the small objects that they replaced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.compacted_object import KIND, Source, decode_footer, read_compacted_object, require_consistent
from stockstream.sinks.archive.compactions import Compaction, Replaced, compactions_of, covers, manifest_of, read_manifest
from stockstream.sinks.archive.layout import Name, parse_name
from stockstream.sinks.archive.processed import Counting
from stockstream.sinks.archive.verifying.parquet_objects import open_object, read_object
from stockstream.sinks.archive.verifying.reading import Reading, Verified
from stockstream.sinks.stores import Store
from stockstream.wording import counted


class CompactedObjects:
    """The compactions of an archive. `faults` gets what is wrong with them.

    A compaction may take effect during a verification. So ask `replaced` about an object that is listed and cannot be found.
    """

    def __init__(self, store: Store, faults: list[str], reading: Reading | None = None) -> None:
        self._store, self._faults, self._reading = store, faults, reading or Reading()
        self._checked: set[Compaction] = set()
        self._lines: dict[tuple[str, str], list[Replaced]] = defaultdict(list)
        self._footers: dict[str, bytes] = {}
        """By the name of the small object that was replaced."""
        self._data: dict[str, Compaction] = {}
        """By the same: its compaction."""
        self._held: tuple[Compaction, str, int, pa.Table] | None = None
        """The rows of one partition in the data object that was read last."""

    def check(self, compactions: Iterable[Compaction], step: Callable[[int], None] = lambda steps: None) -> None:
        """Checks the compactions that have a manifest. Of those that are not to be read, the manifest and the footer."""
        for compaction in compactions:
            step(1)
            self._checked.add(compaction)
            try:
                self._lines[compaction.area, compaction.folder] += read_manifest(self._store, compaction)
                self._check(compaction)
            except ArchiveUnavailable:
                raise
            except ArchiveError as error:
                self._faults.append(str(error))

    def check_unmade(self, compactions: Iterable[Compaction], there: Container[str]) -> None:
        """Checks data objects without a manifest. A compaction that was killed leaves one beside its sources; they are deleted after the manifest exists."""
        for compaction in compactions:
            try:
                gone = [source.name for source in read_compacted_object(self._store, compaction.data).list_sources() if source.name not in there]
            except ArchiveUnavailable:
                raise
            except ArchiveError as error:
                self._faults.append(str(error))
                continue
            if gone:
                objects = counted(len(gone), "object")
                self._faults.append(f"{compaction.manifest} is missing: {compaction.data} replaced {objects} that are not there any more, such as {gone[0]}")

    def names(self) -> list[tuple[str, Name]]:
        """The small objects that were replaced."""
        return [(name, parsed) for name in self._footers if (parsed := parse_name(name))]

    def counts(self, name: Name) -> bool:
        """Whether a small object that is there counts: no manifest replaces it."""
        return not covers(self._lines.get((name.area.removeprefix("processed/"), name.folder), ()), name)

    def replaced(self, name: str) -> bytes | None:
        """The footer of a small object that a compaction replaced; None if there is no such object."""
        parsed = parse_name(name)
        if name not in self._footers and parsed is not None and self._store.size(name) is None:
            self.check(one for one in compactions_of(self._store, parsed.area.removeprefix("processed/"), parsed.folder) if one not in self._checked)
        return self._footers.get(name)

    def data_of(self, name: str) -> str:
        """The object with the rows of a small object: itself, or the data object of the compaction that replaced it."""
        return self._data[name].data if name in self._data else name

    def rows(self, name: str, parsed: Name, last: int) -> pa.Table:
        """The rows of a small object, through offset `last`, that a compaction replaced. Raises `ArchiveError`."""
        compaction = self._data[name]
        if self._held is None or self._held[:3] != (compaction, parsed.log, parsed.partition):
            _, file = open_object(self._store, compaction.data, decode_footer, KIND)
            mine = [
                batch.filter(pc.and_(pc.equal(batch.column("log"), parsed.log), pc.equal(batch.column("partition"), parsed.partition)))
                for batch in file.iter_batches(use_threads=False)
            ]
            self._held = compaction, parsed.log, parsed.partition, pa.Table.from_batches(mine, file.schema_arrow)
        table = self._held[3]
        place = table.column("offset" if compaction.area == "ticks" else "record_offset")
        return table.filter(pc.and_(pc.greater_equal(place, parsed.first), pc.less_equal(place, last)))

    def _check(self, compaction: Compaction) -> None:
        name = compaction.data
        if self._store.size(name) is None:
            self._faults.append(f"{name} is missing, though {compaction.manifest} exists")
            return
        reading, begun, file = self._reading, len(self._faults), None
        stamps = reading.stamps_of(name)
        wanted = reading.dated(name)
        reading.there += wanted
        if wanted and reading.known(name, stamps):
            reading.before += 1
        elif wanted and reading.chosen(name):
            reading.read += 1
            footer, file = open_object(self._store, name, decode_footer, KIND)
            require_consistent(name, footer, file.metadata.num_rows)
        if file is None:
            footer = read_compacted_object(self._store, name)
        sources = footer.list_sources()
        if self._store.read(compaction.manifest) != manifest_of(compaction, [source.range for source in sources]):
            self._faults.append(f"{compaction.manifest} is not as it was written: {name} has other sources")
        for source in sources:
            parsed = parse_name(source.name)
            if parsed is None or (parsed.area, parsed.folder) != (f"processed/{compaction.area}", compaction.folder):
                self._faults.append(f"{name}: it cannot replace {source.name}")
            elif source.name in self._footers:
                self._faults.append(f"{name}: {source.name} is in an earlier compaction too, so its rows count twice")
            self._footers[source.name] = bytes(source.footer)
            self._data[source.name] = compaction
        place = "offset" if compaction.area == "ticks" else "record_offset"
        if file is None:
            return
        found = rows_by_source(file.read(["log", "partition", place, "compaction"], use_threads=False), place, compaction.number, sources)
        for source, rows in zip(sources, found, strict=True):
            if rows != source.range.rows:
                self._faults.append(f"{name}: it has {counted(rows, 'row')} of {source.name}, which had {source.range.rows}")
        if len(self._faults) == begun:
            reading.verified(Verified(name, stamps, rows=footer.rows))


def read_made_object(
    store: Store, name: str, compacted: CompactedObjects, decode: Callable[[bytes], Counting], kind: str
) -> tuple[Counting, pa.Table | None]:  # fmt: skip
    """The footer and rows of a small object; no rows if a compaction replaced it, which has them, as many as the footer counts. Raises as `read_object`."""
    footer = compacted.replaced(name)
    if footer is None:
        try:
            return read_object(store, name, decode, kind)
        except ArchiveUnavailable:
            raise
        except ArchiveError:
            footer = compacted.replaced(name)                            # it may have been replaced since
            if footer is None:
                raise
    return decode(footer), None


def rows_by_source(table: pa.Table, place: str, number: int, sources: Sequence[Source]) -> list[int]:
    """How many rows a compaction's data object has of each of its sources: those of its log, partition and offsets that have the compaction's number."""
    logs = table.column("log").combine_chunks().dictionary_encode()
    known = {log: code for code, log in enumerate(logs.dictionary.to_pylist())}
    right = table.column("compaction").fill_null(-1).to_numpy() == number
    partitions = table.column("partition").to_numpy()
    many = int(partitions.max(initial=0)) + 1
    chain = np.where(right, logs.indices.to_numpy() * np.int64(many) + partitions, -1)
    offsets = table.column(place).to_numpy()
    order = np.lexsort((offsets, chain))
    chain, offsets = chain[order], offsets[order]
    found = []
    for source in sources:
        one = source.range
        wanted = known.get(one.log, -2) * many + one.partition if one.partition < many else -2
        begin, end = np.searchsorted(chain, wanted), np.searchsorted(chain, wanted, side="right")
        inside = offsets[begin:end]
        found.append(int(np.searchsorted(inside, one.last, side="right") - np.searchsorted(inside, one.first)))
    return found
