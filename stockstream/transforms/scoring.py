"""Scoring of one partition: rows of closed seconds in, predictions and outcomes out, as a pure function of the raw log and of who was champion when.

Every row that is not `revised` and has a price is scored at its closing. A prediction made for second s is judged over a horizon h by the first closing of
its source that reaches s + h, at the price of the symbol's last such row with a second <= s + h, whatever else that closing brings.

What is kept (`records`, in the order of writing): for each source and second with predictions to judge, one or more **slots** (symbols, prices and what
each model said), written once, in a ring of seconds; the **roster**, which says from which raw offset on which models score; and at the end the **head**: how
far the log is counted and up to which second each source is closed. The last prices follow from the slots, as every prediction carries its own.
Records are written after delivery, so after a crash closings at or below the highest offset of any record are counted again but not told again.
A ring of more seconds than the longest horizon never loses a prediction that is still to be judged, even where only a part of the records got written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models import ScoringModel, features
from stockstream.errors import ModelError, StateError
from stockstream.records import Horizon, Outcome, Prediction, Role
from stockstream.transforms.changelog import ChangelogIndex, Range, named
from stockstream.transforms.frames import Frame, bounds_of_runs, numbers

RING_S: Final = 128
"""Slots of a source; horizons are below it."""
TERMS: Final = 8
ROWS_OF_A_SLOT: Final = 8_000
"""About 60 bytes a row with two models: a record stays within a message of 1 MiB."""
UNITS_OF_RETURN: Final = 1e9
UNITS_OF_P_UP: Final = 1e6
"""Predictions are told, and kept as int32, in units of 1e-9 and 1e-6: short, and what is sent does not hang on a processor's last bit."""
_REALISED_DIGITS: Final = 12
_MOST_RETURN: Final = 2.0
OUTCOMES_OF_A_MESSAGE: Final = 2_000
"""Of at most 450 bytes, so that a message stays under 1 MiB."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Units = NDArray[np.int32]
Load = Callable[[str, str], ScoringModel]

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_json = msgspec.json.Encoder().encode
_json_lines = msgspec.json.Encoder().encode_lines


@dataclass(frozen=True, slots=True)
class Contender:
    """A model and what it is here for: the champion's predictions are published, a shadow's are only judged."""

    model: ScoringModel
    role: Role = "champion"


@dataclass(frozen=True, slots=True)
class Member:
    """A contender by name, as the roster keeps it."""

    role: Role
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Predictions:
    """Columns of one model's predictions: n rows by (closing offset, source, second, symbol), h horizons."""

    model: str
    version: str
    feature_hash: str
    horizons_s: tuple[int, ...]
    symbol: list[str]
    as_of: Ints
    price: Floats
    offset: Ints
    predicted_return: Floats
    p_up: Floats


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Columns of what became of predictions, in the order of judging; `said_by` whom, and how many rows in turn."""

    said_by: list[tuple[Member, int]]
    symbol: list[str]
    as_of: Ints
    horizon_s: Ints
    predicted_return: Floats
    p_up: Floats
    realised_return: Floats
    price_then: Floats


@dataclass(frozen=True, slots=True)
class Scored:
    """What a frame brought. `through` is the raw offset counted through; all is in the log's order, however it was cut."""

    partition: int
    through: int
    predictions: tuple[Predictions, ...] = ()
    outcomes: Outcomes | None = None

    @property
    def symbols(self) -> list[str]:
        """The symbol of each prediction, in the order of `encode_predictions`."""
        return [symbol for of in self.predictions for symbol in of.symbol]


@dataclass(slots=True)
class _Said:
    """What one model said for the rows of one second; units (n, h)."""

    role: Role
    name: str
    version: str
    horizons_s: tuple[int, ...]
    returns: Units
    p_up: Units


@dataclass(slots=True)
class _Slot:
    """The scored rows of one source and second; `index` are numbers of the source's symbols."""

    second: int
    index: Ints
    price: Floats
    said: list[_Said]

    @property
    def horizons(self) -> set[int]:
        return {horizon for said in self.said for horizon in said.horizons_s}


@dataclass(frozen=True, slots=True)
class _Judged:
    """What one model said of a slot over one horizon, the `column`-th, and the prices at its end; `names` are the source's symbols."""

    names: list[str]
    slot: _Slot
    said: _Said
    column: int
    price_then: Floats


class _Source:
    """One source's clock, last prices and the seconds whose predictions are, or may be, to judge."""

    def __init__(self, closed: int, begun: int = -1) -> None:
        self.closed = closed
        self.begun = begun
        """Raw offset from which on the source tells of this series; what is stored of another one before counts no more."""
        self.names: list[str] = []
        self.last = np.full(64, np.nan)
        self.slots: dict[int, _Slot] = {}
        self.due: dict[int, list[int]] = {}
        self._number: dict[str, int] = {}

    def know(self, symbols: Sequence[str]) -> Ints:
        number, names = self._number, self.names
        for symbol in symbols:
            if symbol not in number:
                number[symbol] = len(names)
                names.append(symbol)
        if len(names) > len(self.last):
            self.last = np.concatenate([self.last, np.full(len(names), np.nan)])
        return np.fromiter(map(number.__getitem__, symbols), np.int64, len(symbols))

    def add(self, slot: _Slot) -> None:
        """Takes the slot's prices as the last ones, and waits for what it said."""
        self.last[slot.index] = slot.price
        self.slots[slot.second] = slot
        for horizon in slot.horizons:
            if slot.second + horizon > self.closed:
                self.due.setdefault(slot.second + horizon, []).append(slot.second)

    def advance(self, second: int) -> None:
        """Closes through `second` and forgets what no horizon reaches."""
        self.closed = max(self.closed, second)
        while self.slots and (oldest := next(iter(self.slots))) <= self.closed - RING_S:
            del self.slots[oldest]


@dataclass(slots=True)
class _Rows:
    """The rows to score, in log order; `spans` says where each closing's are, second by second."""

    batch: pa.RecordBatch
    symbol: list[str]
    second: Ints
    price: Floats
    offset: Ints
    spans: dict[tuple[int, str], dict[int, slice]]

    @classmethod
    def of(cls, batch: pa.RecordBatch, expect: int) -> _Rows:
        """Of `windows` rows those at or beyond `expect` that are not `revised` and have a price."""
        price = numbers(batch, "price")
        wanted = (price > 0) & ~numbers(batch, "revised") & (numbers(batch, "offset") >= expect)
        if not wanted.all():
            batch = batch.filter(pa.array(wanted))
        offset, second = numbers(batch, "offset"), numbers(batch, "second")
        names = batch.column("source").dictionary_encode()
        code, table = names.indices.to_numpy(), names.dictionary.to_pylist()
        spans: dict[tuple[int, str], dict[int, slice]] = {}
        for low, high in pairwise(bounds_of_runs(offset, code, second)):
            spans.setdefault((int(offset[low]), table[code[low]]), {})[int(second[low])] = slice(low, high)
        return cls(batch, batch.column("symbol").to_pylist(), second, numbers(batch, "price"), offset, spans)

    def features(self, run: slice) -> NDArray[np.float32]:
        batch = self.batch.slice(run.start, run.stop - run.start)
        return features.matrix({name: numbers(batch, name) for name in features.COLUMNS})


class Scorer:
    """Predictions and their judgement for one partition.

    `log` is the raw log's id, `expect` the next raw offset (-1: accepts any first frame), `sent` the offset through which a restored scorer had told all,
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
        self._sources: dict[str, _Source] = {}
        self._models: dict[tuple[str, str], ScoringModel] = {}
        self._roster: list[tuple[int, tuple[Member, ...]]] = []
        self._unsaved: dict[tuple[str, int], _Slot] = {}
        self._roster_saved = True
        self._closed_since = False
        self._saved_expect = -1
        self.index = ChangelogIndex()
        if contenders:
            self._change(contenders, 0)

    # -- models -------------------------------------------------------------

    @property
    def champion(self) -> tuple[str, str] | None:
        """Name and version of the champion from the newest entry of the roster."""
        return next(((m.name, m.version) for m in self.members if m.role == "champion"), None)

    @property
    def members(self) -> tuple[Member, ...]:
        """The newest entry of the roster."""
        return self._roster[-1][1] if self._roster else ()

    def set_champion(self, model: ScoringModel, from_offset: int) -> None:
        """Makes `model` the champion for closings from a raw offset on; write `records` before the next frame.

        `from_offset` must be beyond whatever was told: the start of the next frame (`expect`) of a scorer that has written its records. Raises `ModelError`.
        """
        shadows = [
            Contender(self._models[m.name, m.version], "shadow")
            for m in self.members
            if m.role == "shadow" and (m.name, m.version) != (model.name, model.version)
        ]
        self._change([Contender(model), *shadows], from_offset)

    def set_shadows(self, models: Iterable[ScoringModel], from_offset: int) -> None:
        """Makes `models` the shadows, as `set_champion` does."""
        kept = [Contender(self._models[m.name, m.version]) for m in self.members if m.role == "champion"]
        self._change([*kept, *(Contender(model, "shadow") for model in models)], from_offset)

    def _change(self, contenders: Sequence[Contender], from_offset: int) -> None:
        if from_offset < self.expect:
            raise ModelError(f"partition {self.partition}: models cannot change at offset {from_offset}, which is behind {self.expect}")
        if sum(contender.role == "champion" for contender in contenders) > 1:
            raise ModelError("there can be one champion only")
        for contender in contenders:
            model = contender.model
            if not model.horizons_s or not all(0 < horizon < RING_S for horizon in model.horizons_s):
                told = ", ".join(map(str, model.horizons_s)) or "none"
                raise ModelError(f"model {model.name} {model.version}: horizons must be 1 to {RING_S - 1} s, not {told}")
            if model.feature_hash != features.feature_hash():
                raise ModelError(f"model {model.name} {model.version} was trained on other features: train it again")
        if not contenders:
            raise ModelError("what scores cannot stop scoring: give another model")
        members = tuple(Member(c.role, c.model.name, c.model.version) for c in contenders)
        if len({(m.name, m.version) for m in members}) < len(members):
            raise ModelError("a model can have one role only")
        self._models |= {(c.model.name, c.model.version): c.model for c in contenders}
        if members == self.members:
            return
        self._roster = [entry for entry in self._roster if entry[0] < from_offset] + [(from_offset, members)]
        self._roster_saved = False

    def _entry(self, offset: int) -> tuple[Member, ...]:
        return next((members for start, members in reversed(self._roster) if start <= offset), ())

    # -- frames -------------------------------------------------------------

    def frame(self, frame: Frame, input_offset: int = 0) -> Scored | None:
        """Takes a whole `windows` frame; returns what is to be told, or None where the frame is of no use now.

        A frame that starts beyond `expect` is somebody else's future, one of an older log is past: dropped. What was counted before changes nothing.
        `input_offset` is the frame's own offset in its topic. Raises `ModelError` where a model's numbers are not finite; nothing has changed then.
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
        rows = _Rows.of(frame.rows, self.expect)
        said, predictions = self._score(rows)
        judged: list[_Judged] = []
        for closing in closings:
            source = self._sources.get(closing.source)
            if source is None:
                source = self._sources[closing.source] = _Source(closing.after)
            elif closing.after < source.closed:                          # heard again after clean forgot the source: another series
                source = self._sources[closing.source] = _Source(closing.after, closing.offset)
                self._unsaved = {place: slot for place, slot in self._unsaved.items() if place[0] != closing.source}
                self.index.forget(closing.source)
            due = self._close(closing.source, source, closing.second, rows, rows.spans.get((closing.offset, closing.source), {}), said)
            if closing.offset > self.sent:
                judged += due
        self.expect = frame.through + 1
        self.resume_input = input_offset + 1
        self._closed_since |= bool(closings)
        return Scored(self.partition, frame.through, predictions, _outcomes(judged))

    def skip_to(self, start: int) -> None:
        """The input has lost what was before: goes on from a frame that starts there."""
        self.expect = start

    def _begin(self, log: str) -> None:
        """A newer log: what was is of another world, but the models stay."""
        if self.log:
            self._roster = [(0, self.members)] if self.members else []
        self.log, self.expect, self.sent, self._saved_expect = log, -1, -1, -1
        self._sources, self._unsaved = {}, {}
        self.index.clear()
        self._roster_saved, self._closed_since = not self._roster, False

    def _score(self, rows: _Rows) -> tuple[list[tuple[slice, list[_Said]]], tuple[Predictions, ...]]:
        """What each model says, for runs of rows with the same roster, and the champions' predictions of them that are to be told."""
        said: list[tuple[slice, list[_Said]]] = []
        predictions: list[Predictions] = []
        starts = [start for start, _ in self._roster[1:]]
        edges = sorted({0, len(rows.offset), *(int(rows.offset.searchsorted(start)) for start in starts)})
        for low, high in pairwise(edges):
            run = slice(low, high)
            voices: list[_Said] = []
            members = self._entry(int(rows.offset[low]))
            matrix = rows.features(run) if members else np.empty((0, 0), np.float32)
            for member in members:
                model = self._models[member.name, member.version]
                returns, p_up = model.predict(matrix)
                if not (np.isfinite(returns).all() and np.isfinite(p_up).all()):
                    raise ModelError(f"model {member.name} {member.version} gave numbers that are not finite")
                voice = _Said(
                    member.role, member.name, member.version, model.horizons_s,
                    np.rint(np.clip(returns, -_MOST_RETURN, _MOST_RETURN) * UNITS_OF_RETURN).astype(np.int32),
                    np.rint(np.clip(p_up, 0, 1) * UNITS_OF_P_UP).astype(np.int32),
                )  # fmt: skip
                voices.append(voice)
                first = max(low, int(rows.offset.searchsorted(self.sent, "right")))
                if member.role == "champion" and first < high:
                    predictions.append(_told(rows, slice(first, high), voice, first - low, model.feature_hash))
            said.append((run, voices))
        return said, tuple(predictions)

    def _close(
        self, name: str, source: _Source, second: int, rows: _Rows, fresh: Mapping[int, slice], said: Sequence[tuple[slice, list[_Said]]]
    ) -> list[_Judged]:
        """One closing: takes each second's rows, then judges what is due at that second, second by second."""
        start, voices = 0, list[_Said]()
        if fresh:
            first = next(iter(fresh.values())).start
            start, voices = next((run.start, voices) for run, voices in said if run.start <= first < run.stop)
        horizons = {horizon for voice in voices for horizon in voice.horizons_s}
        due = [due for due in source.due if due <= second]
        judged: list[_Judged] = []
        for moment in sorted({*fresh, *due, *(made + h for made in fresh for h in horizons if made + h <= second)}):
            if moment in fresh and voices:
                slot = _slot(source, moment, rows, fresh[moment], voices, start)
                source.add(slot)
                self._unsaved[name, moment] = slot
            for made in sorted(source.due.pop(moment, ())):
                judged += _judge(source, source.slots[made], moment)
        source.advance(second)
        return judged

    # -- state --------------------------------------------------------------

    def records(self, term: int = 0, everything: bool = False) -> list[tuple[bytes, bytes]]:
        """Keys and values to write, in this order, once what the frames so far brought is delivered.

        None where nothing closed and no model changed since the last call; all that is needed, written before or not, with `everything`. A value begins
        with the raw offset that it counts through, then the log's id; a key holds partition, log and the writer's `term` (modulo TERMS), so that a woken
        worker can only replace what it wrote itself, and an older log's record can never win. Where they have come to lie is told to `index.confirmed`.
        """
        out: list[tuple[bytes, bytes]] = []
        newest: dict[str, int] = {}
        named: list[str] = []
        through = self.expect - 1
        if everything or not self._roster_saved:
            # an entry may go once no reader of the head already written needs it
            while len(self._roster) > 1 and self._roster[1][0] <= self._saved_expect:
                del self._roster[0]
            begins = max((start for start, _ in self._roster), default=-1)
            entries = [[start, [[m.role, m.name, m.version] for m in members]] for start, members in self._roster]
            out.append((self._key("roster", term), _pack([begins, self.log, entries])))
            self._roster_saved = True
            named.append("roster")
        if self._closed_since or (everything and self.expect >= 0):
            slots = self._unsaved
            if everything:
                slots = {(name, second): slot for name, source in self._sources.items() for second, slot in source.slots.items()}
            for (name, second), slot in slots.items():
                if second > self._sources[name].closed - RING_S:
                    out += self._slot_records(term, name, slot, through)
                    newest[name] = max(second, newest.get(name, second))
            closed = {name: [source.closed, source.begun] for name, source in self._sources.items()}
            needed = self.index.needed({name: second - RING_S + 1 for name, (second, _) in closed.items()})
            out.append((self._key("head", term), _pack([through, self.log, self.expect, self.resume_input, closed, needed])))
            self._unsaved, self._closed_since, self._saved_expect = {}, False, self.expect
        if out:
            self.index.written(newest, named)
        return out

    def _key(self, kind: str, term: int, *place: str | int) -> bytes:
        return _pack([self.partition, self.log, kind, term % TERMS, *place])

    def _slot_records(self, term: int, name: str, slot: _Slot, through: int) -> Iterator[tuple[bytes, bytes]]:
        names = self._sources[name].names
        parts = -(-len(slot.index) // ROWS_OF_A_SLOT)
        for part in range(parts):
            run = slice(part * ROWS_OF_A_SLOT, (part + 1) * ROWS_OF_A_SLOT)
            said = [[v.role, v.name, v.version, v.horizons_s, _bytes(v.returns[run]), _bytes(v.p_up[run])] for v in slot.said]
            symbols = [names[number] for number in slot.index[run].tolist()]
            value = [through, self.log, name, slot.second, part, parts, symbols, _bytes(slot.price[run]), said]
            yield self._key("slot", term, name, slot.second % RING_S, part), _pack(value)

    @staticmethod
    def needs(records: Mapping[bytes, bytes]) -> list[Range] | None:
        """The ranges of the changelog that the best head among these records names; None where there is no head."""
        return named([_unpack(value) for key, value in records.items() if _unpack(key)[2] == "head"])

    @classmethod
    def restore(cls, partition: int, records: Mapping[bytes, bytes], load: Load, offsets: Mapping[bytes, int] | None = None) -> Scorer:
        """The scorer that the records describe; those of other partitions and older logs are ignored, none make a new scorer.

        `load(name, version)` brings the models that still score; `offsets` in the changelog, by key. Raises `StateError`, and what `load` raises.
        """
        scorer = cls(partition)
        try:
            keyed = [(_unpack(key), value, offsets[key] if offsets else 0) for key, value in records.items()]
            own = [(key, [*_unpack(value), offset]) for key, value, offset in keyed if key[0] == partition]
            scorer.log = max((key[1] for key, _ in own), default="")
            kinds: dict[str, list[list[Any]]] = {"roster": [], "slot": [], "head": []}
            for key, value in own:
                if key[1] == scorer.log or (key[2] == "roster" and not key[1]):
                    kinds[key[2]].append(value)
            scorer._restore(kinds["roster"], kinds["slot"], kinds["head"])
        except (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError) as error:
            raise StateError(f"partition {partition}: a record of score cannot be read: {error}") from error
        for member in {member for _, members in scorer._roster for member in members}:
            scorer._models[member.name, member.version] = load(member.name, member.version)
        return scorer

    def _restore(self, rosters: list[list[Any]], slots: list[list[Any]], heads: list[list[Any]]) -> None:
        if rosters:
            _, _, entries, offset = max(rosters, key=lambda value: (value[1], value[0]))
            self.index.restored(offset, {}, ["roster"])
            self._roster = [(start, tuple(Member(*member) for member in members)) for start, members in entries]
        self.sent = max((value[0] for value in slots + heads), default=-1)
        if not heads:
            return
        _, _, self.expect, self.resume_input, sources, _, _ = max(heads, key=lambda value: value[0])
        closed = {name: second for name, (second, _) in sources.items()}
        slots = [value for value in slots if value[2] not in sources or value[0] >= sources[value[2]][1]]
        for _, _, name, second, *_, offset in sorted(slots, key=lambda value: int(value[-1])):
            self.index.restored(offset, {name: second})
        self._saved_expect = self.expect
        while len(self._roster) > 1 and self._roster[1][0] <= self.expect:
            del self._roster[0]
        self._sources = {name: _Source(*place) for name, place in sources.items()}
        best: dict[tuple[str, int], dict[int, dict[int, list[Any]]]] = {}
        for value in slots:
            through, _, name, second, part, *_ = value
            # a slot beyond the head was written by one that died before its head: its rows come again
            if name in closed and closed[name] - RING_S < second <= closed[name]:
                best.setdefault((name, second), {}).setdefault(through, {})[part] = value
        for name, second in sorted(best, key=lambda place: place[1]):
            whole = [(through, parts) for through, parts in best[name, second].items() if len(parts) == parts[min(parts)][5]]
            if not whole:
                raise ValueError(f"parts of second {second} of {name} are missing")
            parts = [value[6:-1] for _, value in sorted(max(whole, key=lambda item: item[0])[1].items())]
            source = self._sources[name]
            said = [
                _Said(
                    role, model, version, tuple(horizons),
                    np.concatenate([np.frombuffer(part[2][voice][4], "<i4") for part in parts]).reshape(-1, len(horizons)),
                    np.concatenate([np.frombuffer(part[2][voice][5], "<i4") for part in parts]).reshape(-1, len(horizons)),
                )
                for voice, (role, model, version, horizons, _, _) in enumerate(parts[0][2])
            ]  # fmt: skip
            symbols = [symbol for part in parts for symbol in part[0]]
            source.add(_Slot(second, source.know(symbols), np.concatenate([np.frombuffer(part[1], "<f8") for part in parts]), said))


def encode_predictions(scored: Scored, made_at: int, latency_ms: Mapping[str, int]) -> list[bytes]:
    """Each prediction as the JSON of `records.Prediction`, in the order of `scored.symbols`, the messages' keys. Times in epoch ms, latencies in ms."""
    same = {"partition": scored.partition, "made_at": made_at, "latency_ms": dict(latency_ms)}
    out: list[bytes] = []
    for of in scored.predictions:
        template = _template(
            Prediction, {**same, "model": of.model, "version": of.version, "feature_hash": of.feature_hash},
            **_named(of.model, of.version), horizons=b"[%b]" % b",".join(_template(Horizon, {"horizon_s": horizon}) for horizon in of.horizons_s),
        )  # fmt: skip
        symbol, as_of = _open(of.symbol), _texts(of.as_of)
        said = [_texts(values[:, column]) for column in range(len(of.horizons_s)) for values in (of.predicted_return, of.p_up)]
        columns = (symbol, as_of, symbol, as_of, _texts(of.price), _texts(of.offset), *said)
        out += map(template.__mod__, zip(*columns, strict=True))
    return out


def encode_outcomes(scored: Scored, judged_at: int) -> list[bytes]:
    """The outcomes as JSON arrays of `records.Outcome`, as many as a message's size asks for; none where there are none. `judged_at` in epoch ms."""
    of = scored.outcomes
    if of is None:
        return []
    columns = (of.as_of, of.horizon_s, of.predicted_return, of.p_up, of.realised_return, of.price_then)
    rows = zip(of.symbol, *(column.tolist() for column in columns), strict=True)
    items: list[Outcome] = []
    for by, count in of.said_by:
        tail = f"-{by.name}-{by.version}"
        items += [
            Outcome(
                id=f"{symbol}-{as_of}{tail}", symbol=symbol, as_of=as_of, horizon_s=horizon_s, predicted_return=predicted, p_up=p, model=by.name,
                version=by.version, role=by.role, realised_return=realised, price_then=price, judged_at=judged_at,
            )
            for symbol, as_of, horizon_s, predicted, p, realised, price in islice(rows, count)
        ]  # fmt: skip
    return [_json(items[start : start + OUTCOMES_OF_A_MESSAGE]) for start in range(0, len(items), OUTCOMES_OF_A_MESSAGE)]


def _template(record: type[msgspec.Struct], same: Mapping[str, Any], **parts: bytes) -> bytes:
    """What makes records' JSON by `%`: they are alike in `same`; `%b`, or what `parts` has for it, stands for each other field, in the record's order."""
    parts |= {name: _fixed(value) for name, value in same.items()}
    return b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), parts.get(name, b"%b")) for name in record.__struct_fields__)


def _named(model: str, version: str) -> dict[str, bytes]:
    """The parts of a template that take an `_open` symbol: the id, with `as_of`, and the symbol itself."""
    return {"id": b"%b-%b" + _fixed(f"-{model}-{version}")[1:], "symbol": b'%b"'}


def _fixed(value: object) -> bytes:
    return _json(value).replace(b"%", b"%%")


def _texts(column: NDArray[Any]) -> list[bytes]:
    """The JSON of each value."""
    return _json_lines(column.tolist()).split(b"\n")[:-1]


def _open(strings: list[str]) -> list[bytes]:
    """The JSON of each without its last quote, for more to follow; within JSON a line's end is escaped."""
    return _json_lines(strings).split(b'"\n')[:-1]


def _told(rows: _Rows, which: slice, voice: _Said, skip: int, feature_hash: str) -> Predictions:
    return Predictions(
        voice.name, voice.version, feature_hash, voice.horizons_s, rows.symbol[which], (rows.second[which] + 1) * 1000, rows.price[which], rows.offset[which],
        _as_return(voice.returns[skip:]), _as_p(voice.p_up[skip:]),
    )  # fmt: skip


def _slot(source: _Source, second: int, rows: _Rows, span: slice, voices: Sequence[_Said], start: int) -> _Slot:
    """Of the rows in `span` and of what was said for the run of rows from `start` on."""
    own = slice(span.start - start, span.stop - start)
    # copies: a view would keep the whole frame in memory
    mine = [_Said(v.role, v.name, v.version, v.horizons_s, v.returns[own].copy(), v.p_up[own].copy()) for v in voices]
    return _Slot(second, source.know(rows.symbol[span]), rows.price[span].copy(), mine)


def _judge(source: _Source, slot: _Slot, moment: int) -> Iterator[_Judged]:
    price_then = source.last[slot.index]
    for said in slot.said:
        for column, horizon in enumerate(said.horizons_s):
            if slot.second + horizon == moment:
                yield _Judged(source.names, slot, said, column, price_then)


def _outcomes(judged: Sequence[_Judged]) -> Outcomes | None:
    """Computed for a frame at once, as it may bring hundreds of seconds of a few rows each."""
    if not judged:
        return None
    sizes = [len(one.price_then) for one in judged]
    price_then = np.concatenate([one.price_then for one in judged])
    realised = np.round(np.log(price_then / np.concatenate([one.slot.price for one in judged])), _REALISED_DIGITS) + 0.0
    by = groupby(zip(judged, sizes, strict=True), lambda pair: (pair[0].said.role, pair[0].said.name, pair[0].said.version))
    return Outcomes(
        [(Member(*who), sum(size for _, size in run)) for who, run in by],
        [one.names[number] for one in judged for number in one.slot.index.tolist()],
        np.repeat([(one.slot.second + 1) * 1000 for one in judged], sizes),
        np.repeat([one.said.horizons_s[one.column] for one in judged], sizes),
        _as_return(np.concatenate([one.said.returns[:, one.column] for one in judged])),
        _as_p(np.concatenate([one.said.p_up[:, one.column] for one in judged])),
        realised,
        price_then,
    )


def _bytes(values: NDArray[Any]) -> bytes:
    little: NDArray[Any] = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return bytes(little.tobytes())


def _as_return(units: Units) -> Floats:
    return np.asarray(units / UNITS_OF_RETURN, np.float64)


def _as_p(units: Units) -> Floats:
    return np.asarray(units / UNITS_OF_P_UP, np.float64)
