"""What is wrong with a bucket or its credentials is one clear line of each command that reads or writes an archive, and the secret is in none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from stockstream import cli
from stockstream.application import require_places
from stockstream.errors import SettingsError
from stockstream.settings import Settings
from stockstream.sinks import s3
from tests.standins.s3 import SECRET, S3Server, s3_server

URL = "s3://bucket/archive"
COMMANDS = {
    "query": ["query", "--archive", "{url}", "SELECT count(*) FROM ticks"], "verify": ["verify", "--archive", "{url}"], "replay": ["replay", "{url}/raw"],
    "compact": ["compact", "--archive", "{url}"],
}  # fmt: skip
REFUSALS = {
    "denied": ("AccessDenied", 403, "access is denied: it needs s3:ListBucket on the bucket"),
    "expired": ("ExpiredToken", 400, "the credentials have expired"),
    "wrong region": ("PermanentRedirect", 301, "the bucket is in another region: set STOCKSTREAM_AWS_REGION"),
    "wrong secret": ("SignatureDoesNotMatch", 403, "the secret key does not belong to the access key"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as environment, s3_server(environment) as running:
        yield running


@pytest.fixture(autouse=True)
def _environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment("archive").items():            # the tests' environment has no setting of stockstream's
        monkeypatch.setenv(name, value)


def line_of(command: str, url: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    """Runs a command that fails, with every log at its most talkative, and returns the only line that it prints."""
    caplog.set_level(logging.DEBUG)
    assert cli.run([part.format(url=url) for part in COMMANDS[command]]) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert shown.out == "" and SECRET not in shown.err + caplog.text and "Signature=" not in caplog.text
    return line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_one_line(
    command: str, refusal: str, server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    code, status, reason = REFUSALS[refusal]

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": code, "Message": f"AWSAccessKeyId {SECRET}"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "list")

    monkeypatch.setattr(s3._client(server.endpoint, ""), "list_objects_v2", refuse)
    try:
        assert f"{URL}: cannot list its objects: {reason}" in line_of(command, URL, capsys, caplog)
    finally:
        s3._client.cache_clear()


@pytest.mark.parametrize("url", [URL, "s3://no-bucket"])
def test_a_worker_does_not_start(url: str, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "ExpiredToken", "Message": SECRET}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "list")

    if url == URL:
        monkeypatch.setattr(s3._client(server.endpoint, ""), "list_objects_v2", refuse)
    reason = "the credentials have expired" if url == URL else "there is no such bucket"
    try:
        with pytest.raises(SettingsError, match=rf"^STOCKSTREAM_ARCHIVE: {url}: cannot list its objects: {reason}$"):
            require_places(Settings(archive=url, s3_endpoint=server.endpoint, state_dir=tmp_path))
    finally:
        s3._client.cache_clear()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_bucket_is_one_line(command: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    assert "s3://no-bucket: cannot list its objects: there is no such bucket" in line_of(command, "s3://no-bucket", capsys, caplog)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_server_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STOCKSTREAM_S3_ENDPOINT", "http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9 (EndpointConnectionError)" in line_of(command, URL, capsys, caplog)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_credentials_are_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3._client.cache_clear()
    try:
        assert "Unable to locate credentials" in line_of(command, URL, capsys, caplog)
    finally:
        s3._client.cache_clear()
