"""AWS on this machine: MiniStack, whose S3, Glue, SNS, SQS, Lambda and CloudFormation work, and whose Athena runs the SQL over S3 with DuckDB.

It pins botocore, so it has a Python environment of its own, which is made once and kept under ~/.cache/stockstream.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.standins.s3 import SECRET

VERSION = "1.5.33"
ACCOUNT, REGION = "123456789012", "us-east-1"
"""MiniStack takes an access key of twelve digits for the account."""
SERVER = Path(__file__).with_name("ministack_server.py")


class NoMiniStack(RuntimeError):
    """It cannot be installed; the text is one line."""


def installed() -> Path:
    """The Python of MiniStack's environment, which is made if it is not there. Made beside its place and then renamed, so nothing is ever half done.

    Raises `NoMiniStack`.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stockstream"
    place = caches / f"ministack-{VERSION}-python{sys.version_info.major}.{sys.version_info.minor}"
    python = place / "bin" / "python"
    if python.exists():
        return python
    caches.mkdir(parents=True, exist_ok=True)
    with (caches / "ministack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if python.exists():
            return python
        beside = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=caches))
        try:
            _run([sys.executable, "-m", "venv", str(beside)])
            _run([str(beside / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"ministack[full]=={VERSION}"])
            beside.rename(place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoMiniStack(f"MiniStack {VERSION} cannot be installed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


class MiniStack:
    """A running MiniStack with a bucket `bucket`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = (folder / "ministack.log").open("w")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "STOCKSTREAM_", "PYTHON"))}
        environment |= {
            "GATEWAY_PORT": str(self.port), "LAMBDA_EXECUTOR": "local", "S3_DATA_DIR": str(folder / "s3"), "STATE_DIR": str(folder / "state"),
            "TMPDIR": str(folder), "HOME": str(folder), "LOG_LEVEL": "WARNING", "MINISTACK_HOST": "127.0.0.1", "MINISTACK_REGION": REGION,
        }  # fmt: skip
        command = [str(installed()), "-P", str(SERVER), str(self.port)]
        self._process = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_it_answers(folder / "ministack.log")
            self.client("s3").create_bucket(Bucket="bucket")
        except BaseException:
            self.stop()
            raise

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, service: str) -> Any:
        return boto3.client(service, endpoint_url=self.endpoint, region_name=REGION, aws_access_key_id=ACCOUNT, aws_secret_access_key=SECRET)

    def environment(self, prefix: str) -> dict[str, str]:
        """The settings of a worker or a command that archives under `prefix`."""
        return {
            "STOCKSTREAM_ARCHIVE": f"s3://bucket/{prefix}", "STOCKSTREAM_S3_ENDPOINT": self.endpoint, "STOCKSTREAM_AWS_ENDPOINT": self.endpoint,
            "STOCKSTREAM_AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": ACCOUNT, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait_until_it_answers(self, log: Path) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, json.JSONDecodeError), urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=5) as answer:
                json.load(answer)
                return
            time.sleep(0.1)
        raise RuntimeError(f"MiniStack does not answer: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def ministack() -> Iterator[MiniStack]:
    """A running MiniStack, with its data in a folder of its own. Skips the test where it cannot be installed."""
    try:
        installed()
    except NoMiniStack as error:
        pytest.skip(f"no MiniStack: {error}")
    with tempfile.TemporaryDirectory(prefix="ministack-") as folder:
        running = MiniStack(Path(folder))
        try:
            yield running
        finally:
            running.stop()
