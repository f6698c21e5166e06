"""The verification of a whole archive: lists its objects and has each kind checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from stockstream.sinks.archive.chain import chains
from stockstream.sinks.archive.layout import Name, parse_name
from stockstream.sinks.archive.repaired import REPAIRS
from stockstream.sinks.archive.verifying.raw_chain import check_chain
from stockstream.sinks.archive.verifying.repaired_bars import check_repaired
from stockstream.sinks.archive.verifying.report import Coverage, Report
from stockstream.sinks.stores import Store


def check(store: Store, step: Callable[[], None] = lambda: None) -> Report:
    """Reads every object. A writer may be active; objects that it adds meanwhile are not checked. `step` is called for each raw object.

    Raises `ArchiveUnavailable` if the store fails. Faults of the archive itself are in the report.
    """
    report = Report()
    names = list(store.list("raw/"))            # list before the chains, because a writer creates a chain's beginning first
    raw: dict[tuple[str, int], list[tuple[str, Name]]] = {key: [] for key in chains(store)}
    for name in names:
        parsed = parse_name(name)
        if parsed is None:
            report.faults.append(f"{name}: this is not the name of an archive object")
        elif (parsed.log, parsed.partition) not in raw:
            report.faults.append(f"{name}: chains/ has no beginning for its chain")
        else:
            raw[parsed.log, parsed.partition].append((name, parsed))
    processed: dict[tuple[str, int], set[str]] = defaultdict(set)
    repaired: dict[int, list[str]] = defaultdict(list)
    for name in store.list("processed/"):
        parsed = parse_name(name)
        if parsed is None:
            report.faults.append(f"{name}: this is not the name of an archive object")
        elif parsed.log.startswith(REPAIRS):
            repaired[parsed.partition].append(name)
        else:
            processed[parsed.log, parsed.partition].add(name)
    for (log, partition), objects in sorted(raw.items()):
        coverage = Coverage(log, partition)
        report.chains.append(coverage)
        objects.sort(key=lambda item: item[1].first)
        check_chain(store, coverage, objects, processed[log, partition], report.faults, step)
    for key in sorted(set(processed) - set(raw)):
        report.faults.append(f"{min(processed[key])}: there is no raw chain of log {key[0]}, partition {key[1]}")
    for _, of_partition in sorted(repaired.items()):
        check_repaired(store, of_partition, report)
    return report
