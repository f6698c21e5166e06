"""What is wrong with a bucket, its credentials or a query is one clear line of each command that takes an archive, and no secret is in any line or log."""

from __future__ import annotations

import json
import logging
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.endpoint
import pytest

from stockstream import aws, cli
from stockstream.application import require_places
from stockstream.errors import SettingsError, StockstreamError
from stockstream.research import Archive
from stockstream.settings import Settings
from stockstream.sinks import s3
from stockstream.sinks.stores import FileStore, open_store
from tests.filled_archive import DATE, fill
from tests.standins.refusing import Refusing, refusing_server
from tests.standins.s3 import S3Server, s3_server

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "FwoGZXIvYXdzEJr//////////wEaDHV5c2VyLW9mLXRlc3Rz" + "QmFzZTY0" * 24 + "=="
URL = "s3://bucket/archive"
IN_THE_BUCKET = {
    "query": ["query", "--archive", "{url}", "SELECT count(*) FROM ticks"], "verify": ["verify", "--archive", "{url}"],
    "compact": ["compact", "--archive", "{url}"], "archive report": ["archive", "report", "--archive", "{url}"],
    "archive retain": ["archive", "retain", "--archive", "{url}", "--raw-days", "10", "--yes"],
    "archive lifecycle": ["archive", "lifecycle", "--archive", "{url}", "--processed-days", "10"],
    "etl --from": ["etl", "--from", "{url}/raw", "--to", "{folder}/processed", "--date", DATE],
    "etl --to": ["etl", "--from", "{folder}/raw", "--to", "{url}/processed", "--date", DATE],
    "replay": ["replay", "{url}/raw"],
}  # fmt: skip
BY_SERVICES = {
    "athena create": ["athena", "create", "--archive", "{url}"], "query --engine athena": ["query", "--engine", "athena", "--archive", "{url}", "SELECT 1"],
}  # fmt: skip
COMMANDS = IN_THE_BUCKET | BY_SERVICES
REFUSALS = {
    "denied": ("AccessDenied", "AccessDeniedException", 403, "access is denied"),
    "expired": ("ExpiredToken", "ExpiredTokenException", 400, "the credentials have expired"),
    "unknown key": ("InvalidAccessKeyId", "UnrecognizedClientException", 403, "the access key is not known there"),
    "wrong secret": ("SignatureDoesNotMatch", "InvalidSignatureException", 403, "the secret key does not belong to the access key"),
    "other": ("IncompleteSignature", "IncompleteSignatureException", 400, "IncompleteSignature"),
}
RESEARCH: dict[str, Callable[[Archive], Any]] = {
    "sql": lambda archive: archive.sql("SELECT count(*) FROM ticks").df(), "bars": lambda archive: archive.bars("AAPL", "1m", DATE),
    "ticks": lambda archive: archive.ticks("AAPL", DATE), "windows": lambda archive: archive.windows("AAPL", DATE),
    "features": lambda archive: archive.features("AAPL", DATE), "alerts": lambda archive: archive.alerts(start=DATE),
    "symbols": lambda archive: archive.symbols(),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as environment, s3_server(environment) as running:
        fill(open_store(URL, Settings(s3_endpoint=running.endpoint)))
        glue = _client("glue", running)
        glue.create_database(DatabaseInput={"Name": "stockstream"})
        glue.create_table(DatabaseName="stockstream", TableInput={"Name": "ticks_objects", "StorageDescriptor": {"Location": f"{URL}/processed/ticks"}})
        _forget_clients()
        yield running
        _forget_clients()


def _client(service: str, server: S3Server) -> Any:
    return boto3.client(service, endpoint_url=server.endpoint, region_name="us-east-1", aws_access_key_id="admin", aws_secret_access_key="any")


@pytest.fixture(scope="module")
def nobody(server: S3Server) -> dict[str, str]:
    """The keys of a user without any policy."""
    iam = _client("iam", server)
    iam.create_user(UserName="nobody")
    key: dict[str, str] = iam.create_access_key(UserName="nobody")["AccessKey"]
    return key


@pytest.fixture(scope="module")
def refusing() -> Iterator[Refusing]:
    with refusing_server() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive in a folder, for commands that need one beside the bucket."""
    root = tmp_path_factory.mktemp("archive")
    fill(FileStore(root))
    return root


@pytest.fixture(autouse=True)
def _environment(server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The credentials of a role, and every log at its most talkative. Retries do not wait."""
    for name, value in server.environment("archive").items():            # the tests' environment has no setting of stockstream's
        monkeypatch.setenv(name, value)
    for name, value in {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STOCKSTREAM_AWS_ENDPOINT", server.endpoint)
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda _: None))
    caplog.set_level(logging.DEBUG)


def _forget_clients() -> None:
    s3._client.cache_clear()
    aws._client.cache_clear()
    for name in s3.LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def new_clients(_environment: None) -> Iterator[None]:
    """Clients read their credentials when they are made, which takes a moment: the other tests share them."""
    _forget_clients()
    yield
    _forget_clients()


class Shown:
    """What a command prints and logs."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        self._folder, self._capsys, self._caplog = folder, capsys, caplog

    def run(self, arguments: list[str], url: str = URL) -> tuple[int, str, str]:
        """Exit code, standard output and standard error; the secrets are in neither, nor in a log."""
        self._capsys.readouterr()
        status = cli.run([part.format(url=url, folder=self._folder) for part in arguments])
        shown = self._capsys.readouterr()
        self.require_no_secret(shown.out + shown.err)
        return status, shown.out, shown.err

    def line(self, arguments: list[str], url: str = URL, status: int = 1) -> str:
        """The only line that a command prints which fails."""
        found, out, error = self.run(arguments, url)
        assert (found, out) == (status, ""), error
        (line,) = error.splitlines()
        assert "Traceback" not in line and len(line) < 400
        return line

    def require_no_secret(self, text: str) -> None:
        logged = "\n".join(record.getMessage() for record in self._caplog.records if not record.name.startswith("moto"))  # the server logs its requests
        for secret in (KEY, SECRET, TOKEN, TOKEN[:40], "Signature=", "X-Amz-Signature"):
            assert secret not in text + logged


@pytest.fixture
def shown(folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Shown:
    return Shown(folder, capsys, caplog)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("refusal", ["denied", *(pytest.param(name, marks=pytest.mark.slow) for name in REFUSALS if name != "denied")])
def test_a_refusal_is_one_line(command: str, refusal: str, refusing: Refusing, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    of_s3, of_others, status, reason = REFUSALS[refusal]
    refusing.code, refusing.status = of_s3 if command in IN_THE_BUCKET else of_others, status
    for name in ("STOCKSTREAM_S3_ENDPOINT", "STOCKSTREAM_AWS_ENDPOINT"):
        monkeypatch.setenv(name, refusing.endpoint)
    before = refusing.asked
    line = shown.line(COMMANDS[command])
    assert reason in line and (URL in line or command in BY_SERVICES)
    assert refusing.asked > before


@pytest.mark.parametrize("call", RESEARCH)
@pytest.mark.parametrize("refusal", ["denied", pytest.param("other", marks=pytest.mark.slow)])
def test_a_refusal_is_one_line_of_the_research_api(call: str, refusal: str, refusing: Refusing, shown: Shown) -> None:
    refusing.code, _, refusing.status, reason = REFUSALS[refusal]
    with pytest.raises(StockstreamError, match=reason) as opened:
        Archive(URL, s3_endpoint=refusing.endpoint)
    archive = Archive(URL)
    archive._opened.store.access = s3.S3Access(refusing.endpoint)        # type: ignore[union-attr]  # what was allowed is no longer
    with pytest.raises(StockstreamError, match=reason) as later:
        RESEARCH[call](archive)
    for error in (opened.value, later.value):
        assert "\n" not in str(error) and len(str(error)) < 400
        shown.require_no_secret(str(error))


def test_a_bucket_in_another_region_is_one_line(refusing: Refusing, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing.code, refusing.status = "PermanentRedirect", 301
    monkeypatch.setenv("STOCKSTREAM_S3_ENDPOINT", refusing.endpoint)
    for arguments in IN_THE_BUCKET.values():
        assert "the bucket is in another region: set STOCKSTREAM_AWS_REGION" in shown.line(arguments)


@pytest.mark.parametrize("command", IN_THE_BUCKET)
def test_a_wrong_bucket_is_one_line(command: str, shown: Shown) -> None:
    assert "s3://no-bucket: cannot" in (line := shown.line(IN_THE_BUCKET[command], "s3://no-bucket")) and line.endswith("there is no such bucket")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_server_is_one_line(command: str, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOCKSTREAM_S3_ENDPOINT", "STOCKSTREAM_AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9" in shown.line(COMMANDS[command])


@pytest.mark.slow
@pytest.mark.usefixtures("new_clients")
@pytest.mark.parametrize("command", COMMANDS)
def test_no_credentials_are_one_line(command: str, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    assert "there are no AWS credentials: set AWS_PROFILE" in shown.line(COMMANDS[command])


@pytest.mark.slow
@pytest.mark.usefixtures("new_clients")
@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_profile_is_one_line(command: str, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "The config profile (nobody) could not be found" in shown.line(COMMANDS[command])


@pytest.mark.slow
@pytest.mark.usefixtures("new_clients")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_region_that_does_not_exist_is_one_line(command: str, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: str, *_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("STOCKSTREAM_S3_ENDPOINT", "STOCKSTREAM_AWS_ENDPOINT"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("STOCKSTREAM_AWS_REGION", "us-nowhere-9")
    assert "us-nowhere-9.amazonaws.com" in shown.line(COMMANDS[command])
    monkeypatch.setenv("STOCKSTREAM_AWS_REGION", "us east 1")
    _forget_clients()
    assert "us east 1" in shown.line(COMMANDS[command])


@pytest.mark.slow
@pytest.mark.usefixtures("new_clients")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_token_with_a_line_break_is_in_no_line(command: str, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{TOKEN}\n")
    line = shown.line(COMMANDS[command])
    assert "line break" in line


@pytest.mark.usefixtures("new_clients")
def test_a_denial_of_a_service_that_knows_users(server: S3Server, nobody: dict[str, str], shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto checks keys and policies, if it is asked to: a user without any may do nothing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", nobody["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", nobody["SecretAccessKey"])
    monkeypatch.delenv("AWS_SESSION_TOKEN")

    def unchecked(requests: str) -> None:
        change = urllib.request.Request(f"{server.endpoint}/moto-api/reset-auth", requests.encode(), {"Content-Type": "text/plain"}, method="POST")
        with urllib.request.urlopen(change, timeout=10):
            pass

    unchecked("0")
    try:
        for arguments in IN_THE_BUCKET.values():                         # moto's Glue refuses in another form than Glue
            assert "access is denied" in (line := shown.line(arguments)) and nobody["SecretAccessKey"] not in line
    finally:
        unchecked("inf")


QUERIES = {
    "SELECT prize FROM ticks": "there is no column 'prize': did you mean price", "SELECT * FROM tick": "there is no view 'tick': did you mean ticks",
    "DELETE FROM ticks": "the archive is read-only", "COPY ticks TO '/tmp/x.csv'": "the archive is read-only", "CREATE TABLE x AS SELECT 1": "read-only",
    "INSERT INTO ticks SELECT * FROM ticks": "the archive is read-only", "SELEC 1": "syntax error", "SELECT 1; SELECT 2": "one SQL statement is expected",
    "SELECT * FROM read_csv('/etc/passwd')": "passwd", "SELECT CAST(symbol AS INTEGER) FROM ticks": "symbol",
}  # fmt: skip


@pytest.mark.parametrize("sql", QUERIES)
def test_a_query_that_is_wrong_or_would_write_is_one_line(sql: str, shown: Shown) -> None:
    assert QUERIES[sql] in (line := shown.line(["query", "--archive", "{url}", sql]))
    with pytest.raises(StockstreamError) as raised:
        Archive(URL).sql(sql).df()
    assert f"stockstream: {' '.join(str(raised.value).split())}" == line


@pytest.mark.parametrize("sql", ["DELETE FROM ticks", "INSERT INTO ticks SELECT 1", "DROP VIEW ticks"])
def test_a_query_of_athena_that_would_write_is_one_line(sql: str, shown: Shown) -> None:
    assert "the archive is read-only" in shown.line(["query", "--engine", "athena", "--archive", "{url}", sql])


OTHER_DAY = "2023-10-11"
ON_A_DAY_WITHOUT_DATA = {
    "query": (
        ["query", "--archive", "{url}", f"SELECT symbol FROM ticks WHERE date = '{OTHER_DAY}'"], 0, f"the archive has no ticks of {OTHER_DAY}; it has {DATE}",
    ),
    "compact": (["compact", "--archive", "{url}", "--date", OTHER_DAY], 0, "nothing to compact"),
    "etl": (["etl", "--from", "{url}/raw", "--to", "{folder}/other/processed", "--date", "2023-10-12"], 0, "no raw records of 2023-10-12: nothing was written"),
    "replay": (["replay", "{url}/raw", "--date", OTHER_DAY], 1, f"has no raw objects of these times; it has those of {DATE}"),
    "retain": (["archive", "retain", "--archive", "{url}", "--raw-days", "100000", "--yes"], 0, "nothing to delete"),
}


@pytest.mark.parametrize("command", ON_A_DAY_WITHOUT_DATA)
def test_a_day_without_data_is_an_empty_result_that_says_so(command: str, shown: Shown) -> None:
    arguments, status, text = ON_A_DAY_WITHOUT_DATA[command]
    found, out, error = shown.run(arguments)
    assert (found, text in out + error) == (status, True), out + error


def test_a_day_without_data_is_an_empty_frame() -> None:
    archive = Archive(URL)
    for frame in (archive.bars("AAPL", "1m", OTHER_DAY), archive.ticks("AAPL", OTHER_DAY), archive.windows("AAPL", OTHER_DAY), archive.alerts(start=OTHER_DAY)):
        assert frame.empty and len(frame.columns)


EMPTY = {
    "query": (0, "s3://bucket/none-here holds no archive yet"), "verify": (1, "s3://bucket/none-here holds no archive yet"),
    "compact": (0, "nothing to compact"), "archive report": (0, "s3://bucket/none-here holds no archive yet"), "archive retain": (0, "nothing to delete"),
    "etl --from": (1, "s3://bucket/none-here/raw holds no raw records"), "replay": (1, "s3://bucket/none-here has no raw objects"),
}  # fmt: skip


@pytest.mark.parametrize("command", EMPTY)
def test_a_prefix_without_an_archive_says_so(command: str, shown: Shown) -> None:
    status, text = EMPTY[command]
    found, out, error = shown.run(IN_THE_BUCKET[command], "s3://bucket/none-here")
    assert (found, text in out + error) == (status, True), out + error


def test_the_statements_of_athena_need_no_credentials(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    status, out, error = shown.run(["athena", "ddl", "--archive", "{url}"])
    assert (status, error) == (0, "") and "CREATE" in out
    assert "is none: name it with --archive s3://" in shown.line(["athena", "ddl", "--archive", "./here"])


@pytest.mark.parametrize("url", [URL, "s3://no-bucket"])
def test_a_worker_does_not_start(url: str, server: S3Server, refusing: Refusing, shown: Shown, tmp_path: Path) -> None:
    refusing.code, refusing.status = "ExpiredToken", 400
    reason = "the credentials have expired" if url == URL else "there is no such bucket"
    endpoint = refusing.endpoint if url == URL else server.endpoint
    with pytest.raises(SettingsError, match=rf"^STOCKSTREAM_ARCHIVE: {url}: cannot list its objects: {reason}$") as raised:
        require_places(Settings(archive=url, s3_endpoint=endpoint, state_dir=tmp_path))
    shown.require_no_secret(str(raised.value))


def test_a_summary_for_programs_is_json(shown: Shown) -> None:
    status, out, _ = shown.run(["compact", "--archive", "{url}", "--date", OTHER_DAY, "--json"])
    assert status == 0 and json.loads(out)["folders"] == []
