"""Unclean leader elections: a follower that was away becomes leader, so that frames and state records that the broker had confirmed are lost.

Needs topics that stockstream does not create by itself: two replicas, `min.insync.replicas=1`, and `unclean.leader.election.enable=true`.

Variants: `plain` runs the workers without loopback. Without `states` the changelogs lose nothing. With `anew` the workers are restarted while the follower is
away; it then does not know their producers, so it accepts their next records, and cannot find them out of order.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from stockstream.kafka.admin import STATE_TABLES, changelog, topic_specs
from tests.faults.expected import Key
from tests.faults.line import Line
from tests.faults.verdict import Verdict
from tests.faults.workers import PATIENCE, Failed, wait_until
from tests.kafka import Cluster

if TYPE_CHECKING:
    from tests.faults.cases import Scale

UNSAFE = {"min.insync.replicas": "1", "unclean.leader.election.enable": "true"}
SESSION_S = 40.0
"""Without a controller the group has no coordinator for some seconds. The workers must outlive that, so that they go on with what they have read."""
ALONE_S = 4.0
"""How long the leader confirms alone. Its frames of this time are lost."""


def unclean(cluster: Cluster, seed: int, scale: Scale, *, plain: bool = False, states: bool = True, anew: bool = True) -> Verdict:
    """15. Unclean leader elections: what can be read afterwards is exact, nothing is missing, and what was lost had the same content."""
    rng = random.Random(seed)
    with Line(cluster, seed, **(scale.line | {"session_s": SESSION_S})) as line:
        coordinator = wait_until(partial(line.admin, partial(_coordinator, line.settings.group)), 30, "the group has a coordinator", 0.5) - 1
        leader, follower = rng.sample([node for node in range(cluster.nodes) if node != coordinator], 2)
        names = [line.settings.topic("ticks.clean"), line.settings.topic("windows")]
        if states:
            names += [changelog(line.settings, table) for table in STATE_TABLES]
        line.admin(partial(_create, [
            NewTopic(spec.name, -1, -1, {p: [leader + 1, follower + 1] for p in range(spec.partitions)}, spec.config | UNSAFE)
            for spec in topic_specs(line.settings) if spec.name in names
        ]))  # fmt: skip
        for _ in range(2):
            line.worker(STOCKSTREAM_PLAIN_TRANSPORT="1" if plain else "0")
        for worker in line.workers:
            worker.wait_ready()
        line.producer.start(330)
        line.wait_for_windows()
        read_before: list[dict[str, dict[Key, Counter[bytes]]]] = []
        for _ in range(scale(1, 3)):
            time.sleep(rng.uniform(1, 3))
            read_before.append(_elect_uncleanly(line, names, leader, follower, scale, anew=anew))
            line.count("unclean election")
            line.wait_for_windows(timeout_s=60)
            leader, follower = follower, leader
        line.observer.forget_output()
        verdict = line.finish(timeout_s=60)
        for published in read_before:
            for kind, messages in published.items():
                other = [key for key, contents in messages.items() if not contents.keys() <= line.observer.published[kind].get(key, {}).keys()]
                if other:
                    verdict.fault(f"{kind}: {len(other)} messages had another content before an election, first {other[0]}")
        return line.check(verdict)


def _elect_uncleanly(
    line: Line, names: Sequence[str], leader: int, follower: int, scale: Scale, *, anew: bool
) -> dict[str, dict[Key, Counter[bytes]]]:  # fmt: skip
    """Kills the follower, then the leader once it has confirmed alone for a while, and starts the follower, which becomes leader.

    Returns what had been published before.
    """
    cluster = line.cluster
    cluster.kill(follower)
    wait_until(lambda: _in_sync(cluster, names) == {(leader,)}, 30, f"only broker {leader} is in sync", 0.2)
    if anew:
        for worker in line.workers:
            worker.stop()
        for worker in line.workers:
            worker.start()
        for worker in line.workers:
            worker.wait_ready(60)
    line.wait_for_windows(timeout_s=60)
    time.sleep(ALONE_S)
    line.observer.read()
    published, before = line.observer.published, line.ends(names)
    cluster.kill(leader)
    cluster.start_node(follower)
    wait_until(lambda: _leaders(cluster, names) == {follower}, 60, f"broker {follower} leads", 0.2)
    after = line.ends(names)
    lost = {name: sum(max(0, end - after[name][p]) for p, end in before[name].items()) for name in names}
    scale.say(f"  broker {follower} became leader uncleanly; lost at least {lost}")
    if not all(lost[name] for name in names[:2]):
        raise Failed(f"no frame was lost: {lost}")
    line.observer.forget_output()
    time.sleep(3)
    cluster.start_node(leader)
    cluster.wait_in_sync(60 * PATIENCE)
    return published


async def _coordinator(group: str, admin: AIOKafkaAdminClient) -> int:
    try:
        return int(await admin.find_coordinator(group))
    except KafkaError:
        return 0


async def _create(topics: list[NewTopic], admin: AIOKafkaAdminClient) -> None:
    for name, code, *text in (await admin.create_topics(topics)).topic_errors:
        if code:
            raise Failed(f"{name} cannot be created: {code} {text}")


def _in_sync(cluster: Cluster, names: Sequence[str]) -> set[tuple[int, ...]]:
    known = cluster.metadata().topics
    return {state.in_sync for name in names for state in known.get(name, {}).values()}


def _leaders(cluster: Cluster, names: Sequence[str]) -> set[int]:
    known = cluster.metadata().topics
    return {state.leader for name in names for state in known.get(name, {}).values()}
