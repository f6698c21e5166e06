"""TCP ports for tests, of which several pytest processes may run side by side (`pytest -n`).

Each process has ports of its own. They lie below the ephemeral ones, so that no outgoing connection takes a port after it is found free and before a server
binds it.
"""

from __future__ import annotations

import os
import random
import socket

PROCESSES = 16
"""Processes with a number beyond share ports with others; a port in use is never given out."""
_number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
BROKER_PORTS = range(20_000, 26_000)[_number::PROCESSES]
_OTHERS = range(26_000, 32_000)[_number::PROCESSES]
_next = random.randrange(len(_OTHERS))


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` that nothing listens on. No other test gets it, until all have been given out. Raises `OSError` if the host has no such address."""
    global _next
    for _ in _OTHERS:
        port, _next = _OTHERS[_next], (_next + 1) % len(_OTHERS)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                fault = error
                continue
            return port
    raise fault
