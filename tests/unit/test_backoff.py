"""A client that cannot reach its broker asks for metadata with pauses; by itself it asks again at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stockstream import backoff


class Client:
    """What `_metadata_update` is called on."""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


async def test_pauses_grow_and_begin_anew_after_a_success(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    answers = iter([False] * 6 + [True, False])

    async def update(client: Any, *_: Any) -> bool:
        return next(answers)

    monkeypatch.setattr(backoff, "_update", update)
    client, other = Client(), Client()
    for _ in range(8):
        await backoff.metadata_update(client, None, [])
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.1]
    answers = iter([False])
    await backoff.metadata_update(other, None, [])
    assert pauses[-1] == 0.1


def test_it_is_put_in_with_the_app() -> None:
    from aiokafka.client import AIOKafkaClient

    import stockstream.application  # noqa: F401

    assert AIOKafkaClient._metadata_update is backoff.metadata_update
