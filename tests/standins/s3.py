"""S3 on this machine: moto's server, which can be stopped and started again with what it holds."""

from __future__ import annotations

import contextlib
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any, Protocol

import boto3
import pytest
from moto.s3.utils import _VersionedKeyStore
from moto.server import ThreadedMotoServer

from stockstream.sinks import s3

KEY, SECRET = "AKIDEXAMPLE", "a-secret-that-no-log-may-hold"


def _items(keys: Any) -> Iterator[tuple[str, Any]]:
    for key, versions in dict(keys).items():
        yield key, versions[-1]


setattr(_VersionedKeyStore, "items", _items)  # noqa: B010  moto's own fails (500) if an object is deleted during a listing


class S3Server:
    """A bucket `bucket` on loopback. `stop` is an outage: its objects stay."""

    def __init__(self) -> None:
        self._server: ThreadedMotoServer | None = None
        self.port = 0
        self.start()
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/moto-api/reset", method="POST"), timeout=10):
            pass                                                         # moto's state is the process's
        self.client.create_bucket(Bucket="bucket")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET)

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def environment(self, prefix: str) -> dict[str, str]:
        """The settings of a worker that archives under `prefix`."""
        return {
            "STOCKSTREAM_ARCHIVE": f"s3://bucket/{prefix}", "STOCKSTREAM_S3_ENDPOINT": self.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip


class Server(Protocol):
    """An S3 server with a bucket `bucket`."""

    @property
    def endpoint(self) -> str: ...
    def environment(self, prefix: str) -> dict[str, str]: ...


@contextlib.contextmanager
def environment_of(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment that has the server's credentials and nobody else's."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    for name, value in server.environment("archive").items():
        monkeypatch.setenv(name, value)
    s3._client.cache_clear()
    try:
        yield
    finally:
        s3._client.cache_clear()


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server, and an environment that has its credentials and nobody else's."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3Server()
    try:
        with environment_of(server, monkeypatch):
            yield server
    finally:
        server.stop()
