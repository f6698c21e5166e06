"""The store in a bucket: the contract on a server of S3, and what goes wrong in one clear line each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from stockstream.errors import ArchiveError, ArchiveUnavailable, SettingsError
from stockstream.settings import Settings
from stockstream.sinks import s3
from stockstream.sinks.s3 import S3Access, S3Store, StoreRefused
from stockstream.sinks.stores import Store, open_archive, open_store, require_writable_archive
from tests.contracts.store import StoreContract
from tests.standins.s3 import SECRET, S3Server, s3_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(monkeypatch) as running:
        yield running


def store_of(server: S3Server, url: str = "s3://bucket/archive") -> S3Store:
    return S3Store(url, S3Access(endpoint=server.endpoint))


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, server: S3Server) -> Store:
        return store_of(server)

    @pytest.fixture
    def unavailable(self, server: S3Server) -> Store:
        server.stop()
        return store_of(server)

    def test_many_objects_are_listed_page_by_page(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_of(server)
        names = [f"raw/{number:03d}" for number in range(25)]
        for name in names:
            store.create(name, b"")
        page = s3._client(server.endpoint, "").list_objects_v2
        monkeypatch.setattr(s3._client(server.endpoint, ""), "list_objects_v2", lambda **given: page(**given, MaxKeys=10))
        assert list(store.list("raw/")) == names and list(store.list("raw/", "raw/011")) == names[12:]

    def test_prefixes_are_apart_and_folders_of_the_console_are_no_objects(self, server: S3Server) -> None:
        store_of(server, "s3://bucket/one").create("a", b"1")
        store_of(server, "s3://bucket/one-more/").create("b", b"2")
        server.client.put_object(Bucket="bucket", Key="one/raw/", Body=b"")
        assert list(store_of(server, "s3://bucket/one/").list("")) == ["a"] and store_of(server, "s3://bucket").read("one-more/b") == b"2"
        assert store_of(server, "s3://bucket/one/").url == "s3://bucket/one"

    def test_an_answer_that_was_lost_is_found_by_the_checksum(self, server: S3Server) -> None:
        store = store_of(server)
        assert store.create("a", b"mine") and store.create("a", b"mine") and not store.create("a", b"them")

    def test_a_write_in_progress_is_tried_again(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_of(server)
        fail(monkeypatch, server, "put_object", "ConditionalRequestConflict", 409)
        with pytest.raises(ArchiveUnavailable, match=r"^s3://bucket/archive: cannot write a/b: another write of it is in progress$") as raised:
            store.create("a/b", b"")
        assert not isinstance(raised.value, StoreRefused)

    def test_encryption_and_payer_go_with_every_request(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        store = S3Store("s3://bucket/x", S3Access(server.endpoint, "us-east-1", "aws:kms", "alias/ours", True))
        client = s3._client(server.endpoint, "us-east-1")
        sent: list[tuple[str, dict[str, Any]]] = []
        client.meta.events.register("before-parameter-build.s3", lambda params, model, **_: sent.append((model.name, dict(params))))
        store.create("a", b"1")
        assert (store.read("a"), store.size("a"), list(store.list(""))) == (b"1", 1, ["a"])
        assert {name for name, _ in sent} == {"PutObject", "GetObject", "ListObjectsV2"} and all(params["RequestPayer"] == "requester" for _, params in sent)
        put = sent[0][1]
        assert (put["ServerSideEncryption"], put["SSEKMSKeyId"], put["IfNoneMatch"]) == ("aws:kms", "alias/ours", "*")


def fail(monkeypatch: pytest.MonkeyPatch, server: S3Server, method: str, code: str, status: int) -> None:
    def failing(**_: Any) -> None:
        raise ClientError({"Error": {"Code": code, "Message": f"AWSAccessKeyId {SECRET}"}, "ResponseMetadata": {"HTTPStatusCode": status}}, method)

    monkeypatch.setattr(s3._client(server.endpoint, ""), method, failing)


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [("AccessDenied", 403, "access is denied: it needs s3:ListBucket"), ("ExpiredToken", 400, "the credentials have expired"),
     ("InvalidAccessKeyId", 403, "the access key is not known there"), ("SignatureDoesNotMatch", 403, "the secret key does not belong to the access key"),
     ("PermanentRedirect", 301, "the bucket is in another region: set STOCKSTREAM_AWS_REGION"), ("RequestTimeTooSkewed", 403, "the clock of this machine"),
     ("Unheard", 403, r"the service refuses it \(Unheard\)")],
)  # fmt: skip
@pytest.mark.slow
def test_a_refusal_is_one_line_at_the_start_and_can_pass_while_running(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, code: str, status: int, reason: str
) -> None:
    settings = Settings(archive="s3://bucket/archive", s3_endpoint=server.endpoint)
    fail(monkeypatch, server, "list_objects_v2", code, status)
    with pytest.raises(SettingsError, match=rf"^STOCKSTREAM_ARCHIVE: s3://bucket/archive: cannot list its objects: {reason}[^\n]*$") as start:
        require_writable_archive(settings)
    store = store_of(server)
    fail(monkeypatch, server, "put_object", code, status)
    with pytest.raises(StoreRefused, match=reason) as raised:
        store.create("a", b"")
    assert raised.value.retriable and SECRET not in f"{raised.value}{start.value}"
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    s3._client.cache_clear()
    assert store.create("a", b"")


def test_a_bucket_that_does_not_exist(server: S3Server) -> None:
    with pytest.raises(SettingsError, match=r"^STOCKSTREAM_ARCHIVE: s3://no-bucket/x: cannot list its objects: there is no such bucket$"):
        require_writable_archive(Settings(archive="s3://no-bucket/x", s3_endpoint=server.endpoint))
    store = store_of(server, "s3://no-bucket")
    for call in (lambda: store.size("a"), lambda: store.read("a"), lambda: store.create("a", b""), lambda: list(store.list(""))):
        with pytest.raises(StoreRefused, match="there is no such bucket"):
            call()


def test_no_credentials_and_an_unknown_profile(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreRefused, match=r"^s3://bucket/archive: cannot read a: there are no AWS credentials: set AWS_PROFILE"):
        store.read("a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    s3._client.cache_clear()
    with pytest.raises(SettingsError, match=r"^STOCKSTREAM_ARCHIVE: .*The config profile \(nobody\) could not be found$"):
        require_writable_archive(Settings(archive="s3://bucket/x", s3_endpoint=server.endpoint))
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert store.create("a", b"1"), "credentials that come later are used without a restart"


def test_renewed_credentials_are_read_again(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store, old = store_of(server), s3._client(server.endpoint, "")
    fail(monkeypatch, server, "get_object", "ExpiredToken", 400)
    with pytest.raises(StoreRefused, match="expired"):
        store.read("a")
    assert s3._client(server.endpoint, "") is not old


def test_nobody_answers(server: S3Server) -> None:
    server.stop()
    assert require_writable_archive(Settings(archive="s3://bucket/x", s3_endpoint=server.endpoint)) == (
        f"s3://bucket/x: cannot list its objects: no answer from {server.endpoint} (EndpointConnectionError) (STOCKSTREAM_ARCHIVE)"
    )


def test_a_service_without_conditional_writes_is_refused(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(archive="s3://bucket/x", s3_endpoint=server.endpoint)
    assert require_writable_archive(settings) == "" == require_writable_archive(settings)
    client = s3._client(server.endpoint, "")
    put = client.put_object
    monkeypatch.setattr(client, "put_object", lambda **given: put(**{name: value for name, value in given.items() if name != "IfNoneMatch"}))
    with pytest.raises(SettingsError, match="does not support conditional writes"):
        require_writable_archive(settings)


def test_no_log_has_the_secret(server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = store_of(server)
    store.create("a", b"1")
    store.read("a")
    with pytest.raises(ArchiveError):
        store.read("b")
    assert SECRET not in caplog.text and "Signature" not in caplog.text


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://B", "s3://bucket/a//b", "s3://bucket/../x", "s3://a b/x"])
def test_urls_that_name_no_bucket(url: str) -> None:
    with pytest.raises(SettingsError, match="archive 's3:"):
        open_store(url, Settings())


def test_commands_open_it_by_the_environment(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert open_archive("s3://bucket/archive").url == "s3://bucket/archive"
    with pytest.raises(SettingsError, match=r"^archive: s3://no-bucket: cannot list its objects: there is no such bucket$"):
        open_archive("s3://no-bucket")
    server.stop()
    with pytest.raises(ArchiveUnavailable, match="no answer from"):
        open_archive("s3://bucket/archive")
