"""Fixtures for all tests: brokers, unique names, and an environment without the developer's own settings."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Generator, Iterator

import hypothesis
import pytest
from xdist.remote import Producer

from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.loading import make
from stockstream.settings import Settings
from tests.kafka import Brokers, Cluster
from tests.parallel import Scheduling
from tests.requirements import REQUIRE_ALL, fail_if_required

# No timed assertions, because the machine may be busy. The same examples in each run, so that a commit either passes or fails;
# STOCKSTREAM_TEST_SEARCH=1 searches with others.
hypothesis.settings.register_profile("stockstream", deadline=None, print_blob=True, derandomize=os.environ.get("STOCKSTREAM_TEST_SEARCH") != "1")
hypothesis.settings.load_profile("stockstream")
pytest.register_assert_rewrite("tests.contracts")       # else a failing assertion there shows no values


def pytest_configure() -> None:
    """The app that agents' modules need when they are imported."""
    make(Settings())


def pytest_xdist_auto_num_workers() -> int:
    """At least three processes: a fifth of the time of tests is waiting."""
    return max(3, os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if {"kafka", "kafka3"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)
    if config.getoption("loadgroup", default=False):        # the long ones first, so that no process is the last by much
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    return Scheduling(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_ALL:
        fail_if_required(report)
    return report


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name.startswith("STOCKSTREAM_") and not name.startswith("STOCKSTREAM_REQUIRE_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _heard() -> None:
    """What one test, or a library in it, has left in logging's global state must not deafen the next."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.partition(".")[0] in ("stockstream", "agents", "tables") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True


@pytest.fixture(scope="session")
def brokers() -> Iterator[Brokers]:
    """All brokers of the session; ask for `kafka`, `kafka3` or `embedded` instead."""
    started = Brokers()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def kafka(brokers: Brokers) -> Cluster:
    """Real Kafka, one broker."""
    return brokers.cluster(1)


@pytest.fixture(scope="session")
def kafka3(brokers: Brokers) -> Cluster:
    """Real Kafka, three brokers; whole again before each test, whatever the one before did to it."""
    return brokers.cluster(3)


@pytest.fixture(scope="session")
def embedded(brokers: Brokers) -> EmbeddedBroker:
    """Tansu, the demo's broker."""
    return brokers.embedded()


@pytest.fixture(autouse=True)
def _whole_clusters(request: pytest.FixtureRequest) -> None:
    for name in {"kafka", "kafka3"} & set(request.fixturenames):
        cluster: Cluster = request.getfixturevalue(name)
        cluster.heal()


@pytest.fixture
def prefix(brokers: Brokers) -> Iterator[str]:
    """A topic prefix (and with it an app id) that no other test has; its topics are deleted afterwards."""
    name = f"t{uuid.uuid4().hex[:10]}."
    yield name
    brokers.delete_topics(name[:-1])
