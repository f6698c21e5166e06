"""Seeded changes to bytes and to structured values: the hostile half of every generator."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

Rng = random.Random

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 256, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**18, 10**30, 10**400,
    0.5, -0.0, 1e-308, 5e-324, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 1_700_000_000, 1_700_000_000_000, 1_700_000_000_000_000,
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", " ", "A", "A" * 32, "A" * 33, "漢" * 32, "漢" * 33, "x" * 64, "x" * 65, "x" * 1_024, "x" * 1_025, "y" * 70_000, "\0", "a\nb", " AAPL", "é", "\ud800",
    "😀", "<script>", "../..", "null", "NaN", "opened", "closed", "price_drop", "default", "fast", "-1", "1e9",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [0] * 100)
RAW: tuple[bytes, ...] = (
    b"", b"null", b"[]", b"{}", b"[" * 2_000, b'{"a":' * 2_000, b"[" * 100_000, b"\xff\xfe", b'"', b"{", b"1e999", b"-", b"00", b"NaN", b'"\\ud800"',
    b"\0" * 64, b"\xef\xbb\xbf{}",
)  # fmt: skip
WORDS: tuple[int, ...] = (0, 1, -1, 7, 8, 64, 255, 256, 65_535, 2**20, 2**30, 2**31 - 1, 2**32, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63))


def leaf(rng: Rng) -> Any:
    """A value that nobody expects in this place."""
    return rng.choice(rng.choice((NUMBERS, NUMBERS, TEXTS, OTHERS)))


def changed(rng: Rng, value: Any, rate: float = 0.3) -> Any:
    """A copy of a structure of dicts and lists with one or a few places changed: another value, a place gone, doubled, renamed, or nested deeper."""
    if isinstance(value, dict) and value:
        out = dict(value)
        name = rng.choice(list(out))
        draw = rng.random()
        if draw < 0.15:
            del out[name]
        elif draw < 0.25:
            out[rng.choice(TEXTS) if rng.random() < 0.5 else f"{name}x"] = out.pop(name)
        else:
            out[name] = changed(rng, out[name], rate)
        return out if rng.random() > rate else changed(rng, out, rate / 2)
    if isinstance(value, list | tuple) and value:
        items = list(value)
        at = rng.randrange(len(items))
        draw = rng.random()
        if draw < 0.1:
            del items[at]
        elif draw < 0.2:
            items.insert(at, rng.choice(items))
        else:
            items[at] = changed(rng, items[at], rate)
        return items
    return [value] if rng.random() < 0.05 else leaf(rng)


def dumped(value: Any) -> bytes:
    """JSON as a careless producer writes it: NaN and integers of any length pass."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def changed_json(rng: Rng, values: Sequence[bytes]) -> bytes:
    """One of `values`, which are JSON, with a place of its structure or its bytes changed; now and then something that is no JSON."""
    draw = rng.random()
    if draw < 0.03:
        return rng.choice(RAW)
    data = rng.choice(values)
    if draw < 0.3:
        return changed_bytes(rng, data)
    if draw < 0.5:
        return _spliced(rng, data)
    return dumped(changed(rng, json.loads(data)))


def _spliced(rng: Rng, data: bytes) -> bytes:
    """One value in the text replaced by another: no parsing, so that many can be tried."""
    places = [at for at in range(len(data)) if data[at : at + 1] == b":"] if len(data) < 2_000 else []
    if not places:
        return data
    at = rng.choice(places) + 1
    end = min((place for place in (data.find(b",", at), data.find(b"}", at)) if place >= 0), default=len(data))
    return data[:at] + rng.choice(_LEAVES) + data[end:]


def changed_bytes(rng: Rng, data: bytes) -> bytes:
    """The bytes with one to four changes: bits, numbers in their place, pieces cut, doubled, moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not out:
            return rng.choice(RAW)
        rng.choice(_CHANGES)(rng, out)
    return bytes(out)


def _flip(rng: Rng, out: bytearray) -> None:
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _byte(rng: Rng, out: bytearray) -> None:
    out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _word(rng: Rng, out: bytearray) -> None:
    """A number of four or eight bytes, where such numbers lie in Arrow's format."""
    size, kind = rng.choice(((4, "<i"), (8, "<q")))
    if len(out) < size:
        return
    at = rng.randrange(0, len(out) - size + 1) // size * size
    value = rng.choice(WORDS)
    limit = 1 << (8 * size - 1)
    struct.pack_into(kind, out, at, max(-limit, min(limit - 1, value)))


def _cut(rng: Rng, out: bytearray) -> None:
    del out[rng.randrange(len(out)) :]


def _drop(rng: Rng, out: bytearray) -> None:
    at = rng.randrange(len(out))
    del out[at : at + rng.randrange(1, 64)]


def _repeat(rng: Rng, out: bytearray) -> None:
    at = rng.randrange(len(out))
    out[at:at] = out[at : at + rng.randrange(1, 256)]


def _insert(rng: Rng, out: bytearray) -> None:
    at = rng.randrange(len(out))
    out[at:at] = rng.randbytes(rng.randrange(1, 16))


_CHANGES: tuple[Callable[[Rng, bytearray], None], ...] = (_flip, _byte, _word, _word, _cut, _drop, _repeat, _insert)

_LEAVES: tuple[bytes, ...] = tuple(dumped(value) for value in (*NUMBERS, *TEXTS, *OTHERS))
