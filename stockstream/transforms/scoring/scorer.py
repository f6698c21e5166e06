"""Scoring of one partition: rows of closed seconds in, predictions and outcomes out, as a pure function of the raw log and of who was champion when.

Every row that is not `revised` and has a price is scored at its closing. A prediction made for second s is judged over a horizon h by the first closing of
its source that reaches s + h, at the price of the symbol's last such row with a second <= s + h, whatever else that closing brings. A row that comes late is
one like any other; where s + h was closed before it came, the closing that brings it judges it. Where the
symbol's currency changes between s and s + h, there is no outcome.

A model that gives no usable answer, or cannot be loaded, is suspended from the next raw offset on; its rows from the first faulty one on are not predicted
by it. It never raises here.

What is kept (`records`, in the order of writing; `state` has their form): for each source and second with predictions to judge,
one or more **slots** (symbols, prices and what each model answered; one for each closing that brought rows of the second), written once, in a ring of seconds;
the **roster**, which names from which raw offset on which models score; and at the end the **checkpoint**: how far the log is counted and up to which second
each source is closed. The last prices follow from the slots, as every prediction carries its own. Records are written after delivery, so after a crash
closings at or below the highest offset of any record are counted again but not sent again. A ring of more seconds than the longest horizon never loses a
prediction that is still to be judged, even where only a part of the records got written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models import ScoringModel
from stockstream.errors import ModelError, StateError
from stockstream.records import Role
from stockstream.transforms import versioned as stored
from stockstream.transforms.changelog_index import ChangelogIndex, Range
from stockstream.transforms.frames import Frame
from stockstream.transforms.scoring import state as state
from stockstream.transforms.scoring.asking import RING_S, ModelFault, ask, require_usable
from stockstream.transforms.scoring.pending import Judged, ModelAnswer, Pending, SourcePredictions, judge, outcomes_of, pending_of, predictions_of
from stockstream.transforms.scoring.roster import Entry, Key, Member, Roster
from stockstream.transforms.scoring.rows import RowsToScore
from stockstream.transforms.scoring.scored import Missed, Outcomes, Predictions, Scored, encode_outcomes, encode_predictions
from stockstream.transforms.timing import FORGET_MS
from stockstream.transforms.versioned import TERMS

__all__ = ["Contender", "Entry", "Member", "Missed", "Outcomes", "Predictions", "Scored", "Scorer", "encode_outcomes", "encode_predictions"]

ROWS_OF_A_SLOT: Final = 8_000
"""At the most; `state.cut_rows` has fewer where names are long or models many."""

Load = Callable[[str, str], ScoringModel]


@dataclass(frozen=True, slots=True)
class Contender:
    """A model and what it is here for: the champion's predictions are published, a shadow's are only judged."""

    model: ScoringModel
    role: Role = "champion"


class Scorer:
    """Predictions and their judgement for one partition.

    `log` is the raw log's id, `expect` the next raw offset (-1: accepts any first frame), `sent` the offset through which a restored scorer had sent all,
    `resume_input` the offset in `windows` to go on from after a restart.

    Args:
        partition: number of this partition.
        contenders: models that score from the first frame on; at most one champion.
    """

    def __init__(self, partition: int, contenders: Sequence[Contender] = ()) -> None:
        self.partition = partition
        self.log = ""
        self.expect = -1
        self.sent = -1
        self.resume_input = 0
        self._sources: dict[str, SourcePredictions] = {}
        self._models: dict[Key, ScoringModel] = {}
        self._missing: dict[Key, str] = {}
        """Why a model of the roster could not be loaded."""
        self.roster = Roster()
        self._unsaved: dict[tuple[str, int, int], Pending] = {}
        """By source, second and number of the slot."""
        self._closed_since = False
        self._undated: set[str] = set()
        """Sources that were in a frame since the log clock was last known."""
        self._oldest = 0
        """No source was last heard before this."""
        self._checkpoint_slot = 0
        self._saved_expect = -1
        self.index = ChangelogIndex()
        if contenders:
            self._change([Member(c.role, c.model.name, c.model.version) for c in contenders], [c.model for c in contenders], 0)

    # -- models -------------------------------------------------------------

    @property
    def champion(self) -> Key | None:
        """Name and version of the champion in the newest entry of the roster; None where there is none, or it is suspended."""
        champion = self.roster.champion
        return champion.key if champion else None

    @property
    def members(self) -> tuple[Member, ...]:
        """The newest entry of the roster."""
        return self.roster.members

    @property
    def models(self) -> set[Key]:
        """The models that this scorer holds."""
        return set(self._models)

    def set_champion(self, model: ScoringModel, from_offset: int, stamp: str = "") -> None:
        """Makes `model` the champion for closings from a raw offset on; write `records` before the next frame.

        `from_offset` must be beyond whatever was sent: the start of the next frame (`expect`) of a scorer that has written its records. `stamp` identifies
        the artefact that was loaded: a suspended model that was mended, or promoted again, has another. Raises `ModelError` where the model cannot score.
        """
        shadows = [m for m in self.members if m.role == "shadow" and not m.suspended and m.key != (model.name, model.version)]
        self._change([Member("champion", model.name, model.version, stamp), *shadows], [model], from_offset)

    def set_shadows(self, models: Iterable[ScoringModel], from_offset: int) -> None:
        """Makes `models` the shadows, as `set_champion` does."""
        kept = [m for m in self.members if m.role == "champion" and not m.suspended]
        models = list(models)
        self._change([*kept, *(Member("shadow", model.name, model.version) for model in models)], models, from_offset)

    def _change(self, members: Sequence[Member], models: Iterable[ScoringModel], from_offset: int) -> None:
        models = list(models)
        if from_offset < self.expect:
            raise ModelError(f"partition {self.partition}: models cannot change at offset {from_offset}, which is behind {self.expect}")
        if sum(member.role == "champion" for member in members) > 1:
            raise ModelError("there can be one champion only")
        for model in models:
            require_usable(model)
        if not members:
            raise ModelError("what scores cannot stop scoring: give another model")
        if len({member.key for member in members}) < len(members):
            raise ModelError("a model can have one role only")
        self.roster.change(members, from_offset)
        self._models |= {(model.name, model.version): model for model in models}
        for model in models:
            self._missing.pop((model.name, model.version), None)
        self._drop_models()

    def _drop_models(self) -> None:
        """Forgets models that no entry of the roster lets score."""
        keys = self.roster.keys
        self._models = {key: model for key, model in self._models.items() if key in keys}
        self._missing = {key: why for key, why in self._missing.items() if key in keys}

    # -- frames -------------------------------------------------------------

    def take_frame(self, frame: Frame, input_offset: int = 0) -> Scored | None:
        """Takes a whole `windows` frame; returns what is to be sent, or None where the frame is of no use now.

        A frame that starts beyond `expect`, or of an older log, is dropped. What was counted before changes nothing.
        `input_offset` is the frame's own offset in its topic. A model that fails is suspended in the roster, whose record `records` brings first.
        """
        if self.log and frame.log < self.log:
            return None
        if frame.log != self.log:
            self._begin(frame.log)
        if self.expect >= 0:
            if frame.start > self.expect:
                return None
            if frame.through < self.expect:
                return Scored(self.partition, self.expect - 1)
        closings = sorted((c for c in frame.closings if c.offset >= self.expect), key=lambda c: (c.offset, c.source))
        rows = RowsToScore.of(frame.rows, self.expect)
        answered, predictions, missed, faults = self._score(rows)
        judged: list[Judged] = []
        for closing in closings:
            source = self._sources.get(closing.source)
            if source is None:
                source = self._sources[closing.source] = SourcePredictions(closing.after, closing.offset)
            elif closing.after < source.closed:                          # heard again after clean forgot the source: another series
                source = self._sources[closing.source] = SourcePredictions(closing.after, closing.offset)
                self._unsaved = {place: slot for place, slot in self._unsaved.items() if place[0] != closing.source}
                self.index.forget(closing.source)
            for symbol, began in rows.begun.get((closing.offset, closing.source), ()):
                source.began.setdefault(symbol, set()).add(began)
            due = self._close(closing.source, source, closing.second, rows, rows.spans.get((closing.offset, closing.source), {}), answered)
            if closing.offset > self.sent:
                judged += due
            source.heard = frame.log_clock
            if not frame.log_clock:
                self._undated.add(closing.source)
        outcomes = outcomes_of(judged)
        for name in {closing.source for closing in closings}:
            self._sources[name].compact()
        self._forget(frame.log_clock)
        self.expect = frame.through + 1
        self.resume_input = input_offset + 1
        self._closed_since |= bool(closings)
        suspended = tuple(self.roster.suspend(member, fault.reason, fault.detail, self.expect) for member, fault in faults.items())
        if faults:
            self._drop_models()
        return Scored(self.partition, frame.through, predictions, outcomes, missed, suspended)

    def _forget(self, log_clock: int) -> None:
        """Drops sources that were not heard for `FORGET_MS` of the log clock (0: not known)."""
        if log_clock <= 0:
            return
        for name in self._undated:
            if name in self._sources:
                self._sources[name].heard = log_clock
        self._undated.clear()
        self._oldest = min(self._oldest, log_clock)
        if log_clock - self._oldest <= FORGET_MS:
            return
        gone = {name for name, source in self._sources.items() if log_clock - source.heard > FORGET_MS}
        for name in gone:
            del self._sources[name]
            self.index.forget(name)
        self._unsaved = {place: slot for place, slot in self._unsaved.items() if place[0] not in gone}
        self._oldest = min((source.heard for source in self._sources.values()), default=log_clock)

    def skip_to(self, start: int) -> None:
        """The input has lost what was before: goes on from a frame that starts there."""
        self.expect = start

    def _begin(self, log: str) -> None:
        """A newer log: what was is of another world, but the models stay."""
        if self.log:
            self.roster.begin()
        self.log, self.expect, self.sent, self._saved_expect = log, -1, -1, -1
        self._sources, self._unsaved, self._undated, self._oldest = {}, {}, set(), 0
        self.index.clear()
        self.roster.saved, self._closed_since = not self.roster.entries, False

    def _score(
        self, rows: RowsToScore
    ) -> tuple[list[tuple[slice, list[ModelAnswer]]], tuple[Predictions, ...], tuple[Missed, ...], dict[Member, ModelFault]]:
        """What each model answers, for runs of rows with the same models, the champions' predictions that are to be sent, who missed rows, and who failed."""
        answered: list[tuple[slice, list[ModelAnswer]]] = []
        predictions: list[Predictions] = []
        missed: dict[tuple[str, str, str], int] = {}
        faults: dict[Member, ModelFault] = {}
        starts = [entry.start for entry in self.roster.entries[1:]]
        edges = sorted({0, len(rows.offset), *(int(rows.offset.searchsorted(start)) for start in starts)})
        sent = int(rows.offset.searchsorted(self.sent, "right"))

        def miss(name: str, version: str, reason: str, low: int, high: int) -> None:
            if high > max(low, sent):
                missed[name, version, reason] = missed.get((name, version, reason), 0) + high - max(low, sent)

        for low, high in pairwise(edges):
            answers: list[tuple[int, ModelAnswer]] = []
            members = self.roster.at(int(rows.offset[low]))
            active = [member for member in members if not member.suspended]
            matrix = rows.features(slice(low, high)) if active else np.empty((0, 0), np.float32)
            for member in active:
                fault = faults.get(member)
                if fault is None:
                    answer, feature_hash, fault = self._ask(member, matrix)
                    end = high
                    if fault is not None:
                        faults[member] = fault
                        # a closing's rows are predicted together or not at all
                        end = int(rows.offset.searchsorted(rows.offset[low + fault.row]))
                    if answer is not None and end > low:
                        answer = answer if fault is None else answer.rows(0, end - low)
                        answers.append((end, answer))
                        first = max(low, sent)
                        if member.role == "champion" and first < end:
                            predictions.append(predictions_of(rows, slice(first, end), answer, first - low, feature_hash))
                else:
                    end = low
                if fault is not None:
                    miss(member.name, member.version, fault.reason, end, high)
            if not any(member.role == "champion" for member in active):
                out = next((member for member in members if member.role == "champion"), None)
                miss(*((out.name, out.version, out.suspended) if out else ("", "", "no_model")), low, high)
            cuts = sorted({low, high, *(end for end, _ in answers)})
            if len(cuts) == 2:
                answered.append((slice(low, high), [answer for end, answer in answers if end == high]))
            else:
                answered += [(slice(a, b), [answer.rows(a - low, b - low) for end, answer in answers if end >= b]) for a, b in pairwise(cuts)]
        return answered, tuple(predictions), tuple(Missed(*who, count) for who, count in missed.items()), faults

    def _ask(self, member: Member, matrix: NDArray[np.float32]) -> tuple[ModelAnswer | None, str, ModelFault | None]:
        model = self._models.get(member.key)
        if model is None:
            return None, "", ModelFault("missing", self._missing.get(member.key, "it is not loaded"))
        answer = ask(model, matrix)
        if answer.returns is None or answer.p_up is None:
            return None, "", answer.fault
        return ModelAnswer(member.role, member.name, member.version, answer.horizons_s, answer.returns, answer.p_up), answer.feature_hash, answer.fault

    def _close(
        self, name: str, source: SourcePredictions, second: int, rows: RowsToScore, fresh: Mapping[int, slice],
        answered: Sequence[tuple[slice, list[ModelAnswer]]],
    ) -> list[Judged]:
        """One closing: takes each second's rows, then judges what is due at that second, second by second."""
        start, answers = 0, list[ModelAnswer]()
        if fresh:
            first = next(iter(fresh.values())).start
            start, answers = next((run.start, answers) for run, answers in answered if run.start <= first < run.stop)
        horizons = {horizon for answer in answers for horizon in answer.horizons_s}
        due = [due for due in source.due if due <= second]
        judged: list[Judged] = []
        for moment in sorted({*fresh, *due, *(made + h for made in fresh for h in horizons if made + h <= second)}):
            # prices count, whoever predicts: a prediction may be judged by them, and one of a row that comes late by those that came before it
            if moment in fresh and (answers or source.due or self.roster.entries):
                slot = pending_of(source, moment, rows, fresh[moment], answers, start)
                self._unsaved[name, moment, source.add(slot)] = slot
            for slot in sorted(source.due.pop(moment, ()), key=lambda slot: slot.second):
                judged += judge(source, slot, moment)
        source.advance(second)
        return judged

    # -- state --------------------------------------------------------------

    def records(self, term: int = 0, everything: bool = False) -> list[tuple[bytes, bytes]]:
        """Keys and values to write, in this order, once what the frames so far brought is delivered.

        None where nothing closed and no model changed since the last call; all that is needed, written before or not, with `everything`. A value has the
        raw offset through which it counts; a key holds partition, log and the writer's `term` (modulo TERMS), so that a woken
        worker can only replace what it wrote itself, and an older log's record can never win. Pass to `index.confirmed` the offsets where they were written.
        """
        out: list[tuple[bytes, bytes]] = []
        newest: dict[str, int] = {}
        named: list[str] = []
        through = self.expect - 1
        if everything or not self.roster.saved:
            out.append((self._key("roster", term), stored.pack(state.RosterState.of(self.roster, self.log))))
            self.roster.saved = True
            named.append("roster")
        if self._closed_since or (everything and self.expect >= 0):
            slots = self._unsaved
            if everything:
                slots = {
                    (name, second, number): slot
                    for name, source in self._sources.items() for second, of_second in source.pending.items() for number, slot in enumerate(of_second)
                }  # fmt: skip
            for (name, second, number), slot in slots.items():
                if second > self._sources[name].closed - RING_S:
                    out += self._slot_records(term, name, slot, number, through)
                    newest[name] = max(second, newest.get(name, second))
            sources = {
                name: state.SourceProgress(source.closed, source.series_offset, source.heard, {s: sorted(began) for s, began in source.began.items()})
                for name, source in self._sources.items()
            }
            needed = self.index.needed({name: source.closed - RING_S + 1 for name, source in sources.items()})
            self._checkpoint_slot = stored.next_slot(self._checkpoint_slot)
            checkpoint = state.Checkpoint(
                v=state.VERSION, through=through, log=self.log, expect=self.expect, resume_input=self.resume_input, sources=sources, needed=needed
            )
            out += state.checkpoint_records(self.partition, term % TERMS, self._checkpoint_slot, checkpoint)
            self._unsaved, self._closed_since, self._saved_expect = {}, False, self.expect
            # an entry may go from the next record once no reader of the checkpoint already written needs it
            self.roster.prune(self._saved_expect)
            self._drop_models()
        if out:
            self.index.written(newest, named)
        return out

    def _key(self, kind: str, term: int, *place: str | int) -> bytes:
        return state.key_of(self.partition, self.log, kind, term % TERMS, *place)

    def _slot_records(self, term: int, name: str, slot: Pending, number: int, through: int) -> Iterator[tuple[bytes, bytes]]:
        names = self._sources[name].names
        symbols = [names[index] for index in slot.index.tolist()]
        records = [self._slot_record(name, slot, number, symbols, slice(0, len(symbols)), (0, 1), through)]
        if len(symbols) > ROWS_OF_A_SLOT or len(records[0]) > stored.MAX_VALUE_BYTES:
            runs = list(state.cut_rows(symbols, 8 * sum(len(answer.horizons_s) for answer in slot.answers), ROWS_OF_A_SLOT))
            records = [self._slot_record(name, slot, number, symbols, run, (piece, len(runs)), through) for piece, run in enumerate(runs)]
        for piece, record in enumerate(records):
            yield self._key("slot", term, name, slot.second % RING_S, piece, *([number] if number else ())), record

    def _slot_record(self, name: str, slot: Pending, number: int, symbols: list[str], run: slice, place: tuple[int, int], through: int) -> bytes:
        answers = [state.Answer(v.role, v.name, v.version, list(v.horizons_s), _bytes(v.returns[run]), _bytes(v.p_up[run])) for v in slot.answers]
        return stored.pack(state.PendingState(
            v=state.VERSION, through=through, log=self.log, source=name, second=slot.second, piece=place[0], pieces=place[1], symbols=symbols[run],
            price=_bytes(slot.price[run]), answers=answers, number=number, offset=slot.offset,
        ))  # fmt: skip

    @staticmethod
    def readable(key: bytes, value: bytes) -> str:
        """Why a record of the changelog cannot be read, in words; empty where it can. Raises `StateError` where a newer stockstream wrote it."""
        return state.readable(key, value)

    @staticmethod
    def needs(records: Mapping[bytes, bytes]) -> list[Range] | None:
        """The ranges of the changelog that the best checkpoint among these records names; None where there is no whole one. Raises `StateError`."""
        checkpoints = [one for _, one in state.whole_checkpoints(records)]
        return max(checkpoints, key=lambda one: (one.log, one.through, one.expect)).needed if checkpoints else None

    @classmethod
    def restore(cls, partition: int, records: Mapping[bytes, bytes], load: Load, offsets: Mapping[bytes, int] | None = None) -> Scorer:
        """The scorer that the records describe; those of other partitions and older logs are ignored, none make a new scorer.

        `load(name, version)` brings the models that still score; one for which it raises `ModelError` is suspended at the first row that it should score.
        `offsets` in the changelog, by key. Raises `StateError`.
        """
        scorer = cls(partition)
        try:
            keyed = [(state.read_key(key), key, value) for key, value in records.items()]
            of_partition = [item for item in keyed if item[0].partition == partition]
            scorer.log = max((key.log for key, _, _ in of_partition), default="")
            rosters: list[tuple[int, state.RosterState]] = []
            slots: list[tuple[int, state.PendingState]] = []
            for key, raw, value in of_partition:
                if key.kind != "head" and (key.log == scorer.log or (key.kind == "roster" and not key.log)):
                    record, offset = state.read(key, value), offsets[raw] if offsets else 0
                    if isinstance(record, state.RosterState):
                        rosters.append((offset, record))
                    elif isinstance(record, state.PendingState):
                        slots.append((offset, record))
                elif key.kind == "head":
                    state.read(key, value)
            checkpoints = [one for key, one in state.whole_checkpoints(records) if (key.partition, key.log) == (partition, scorer.log)]
            scorer._restore(rosters, slots, checkpoints)
        except state.UNREADABLE as error:
            raise StateError(f"partition {partition}: a record of score cannot be read: {error}") from error
        for name, version in sorted(scorer.roster.keys):
            try:
                scorer._models[name, version] = load(name, version)
            except ModelError as error:
                scorer._missing[name, version] = str(error)
        return scorer

    def _restore(self, rosters: list[tuple[int, state.RosterState]], slots: list[tuple[int, state.PendingState]], checkpoints: list[state.Checkpoint]) -> None:
        if rosters:
            offset, roster = max(rosters, key=lambda item: (item[1].log, item[1].begins, item[1].change))
            self.index.restored(offset, {}, ["roster"])
            self.roster = roster.restored()
        self.sent = max([-1, *(slot.through for _, slot in slots), *(one.through for one in checkpoints)])
        if not checkpoints:
            return
        checkpoint = max(checkpoints, key=lambda one: one.through)
        self.expect, self.resume_input = checkpoint.expect, checkpoint.resume_input
        sources = checkpoint.sources
        slots = [(offset, slot) for offset, slot in slots if slot.source not in sources or slot.through >= sources[slot.source].series_offset]
        for offset, slot in sorted(slots, key=lambda item: item[0]):
            self.index.restored(offset, {slot.source: slot.second})
        self._saved_expect = self.expect
        self.roster.prune(self.expect)
        for name, progress in sources.items():
            self._sources[name] = SourcePredictions(progress.closed, progress.series_offset, progress.heard)
            self._sources[name].began = {symbol: set(began) for symbol, began in progress.began.items()}
        self._undated = {name for name, source in sources.items() if not source.heard}
        best: dict[tuple[str, int, int], dict[int, dict[int, state.PendingState]]] = {}
        for _, slot in slots:
            # a slot beyond the checkpoint was written by a worker that died before its checkpoint: its rows come again
            known = slot.source in sources and sources[slot.source].closed - RING_S < slot.second <= sources[slot.source].closed
            if known and slot.offset < self.expect:
                best.setdefault((slot.source, slot.second, slot.number), {}).setdefault(slot.through, {})[slot.piece] = slot
        for name, second, number in sorted(best, key=lambda place: place[1:]):
            whole = [(through, pieces) for through, pieces in best[name, second, number].items() if len(pieces) == pieces[min(pieces)].pieces]
            if not whole:
                raise ValueError(f"pieces of second {second} of {name} are missing")
            pieces = [slot for _, slot in sorted(max(whole, key=lambda item: item[0])[1].items())]
            source = self._sources[name]
            answers = [
                ModelAnswer(
                    first.role, first.name, first.version, tuple(first.horizons_s),
                    np.concatenate([np.frombuffer(piece.answers[place].returns, "<i4") for piece in pieces]).reshape(-1, len(first.horizons_s)),
                    np.concatenate([np.frombuffer(piece.answers[place].p_up, "<i4") for piece in pieces]).reshape(-1, len(first.horizons_s)),
                )
                for place, first in enumerate(pieces[0].answers)
            ]  # fmt: skip
            symbols = [symbol for piece in pieces for symbol in piece.symbols]
            price = np.concatenate([np.frombuffer(piece.price, "<f8") for piece in pieces])
            source.add(Pending(second, source.register_symbols(symbols), price, answers, pieces[0].offset), judged=True)


def _bytes(values: NDArray[Any]) -> bytes:
    little: NDArray[Any] = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return bytes(little.tobytes())
