"""Each wrong setting is refused with one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stockstream.errors import SettingsError
from stockstream.locations import folder, in_url, require_readable, require_writable
from stockstream.settings import Settings, load_settings

AUTHORITY = Path(__file__).parent.parent / "fixtures" / "authority.pem"
"""A certificate that nothing trusts; its key was thrown away."""

WRONG = [
    ({"SSL_CAFILE": "/nope", "SECURITY_PROTOCOL": "SSL"}, "STOCKSTREAM_SSL_CAFILE: /nope cannot be read: No such file"),
    ({"SSL_CAFILE": "/dev", "SECURITY_PROTOCOL": "SSL"}, "STOCKSTREAM_SSL_CAFILE: /dev cannot be read"),
    ({"SSL_CAFILE": __file__, "SECURITY_PROTOCOL": "SSL"}, "holds no certificate"),
    ({"WEB_HOST": ""}, "STOCKSTREAM_WEB_HOST"),
    ({"WEB_HOST": "a b"}, "STOCKSTREAM_WEB_HOST"),
    ({"WEB_HOST": "::zz"}, "STOCKSTREAM_WEB_HOST"),
    ({"APP_ID": "a b"}, "STOCKSTREAM_APP_ID"),
    ({"SYMBOLS": "A,,B"}, "STOCKSTREAM_SYMBOLS: an entry of the list is empty"),
    ({"SYMBOLS": "A,"}, "STOCKSTREAM_SYMBOLS"),
    ({"SYMBOLS": "A" * 33}, "STOCKSTREAM_SYMBOLS"),
    ({"SYMBOLS": "A\x07B"}, "STOCKSTREAM_SYMBOLS"),
    ({"BROKER": "kafka://[::1:9092"}, "STOCKSTREAM_BROKER"),
    ({"BROKER": "::1:9092"}, "STOCKSTREAM_BROKER"),
    ({"BROKER": "a:99999"}, "STOCKSTREAM_BROKER"),
    ({"BROKER": "a:9092,,b:9092"}, "STOCKSTREAM_BROKER"),
    ({"BROKER": "https://a:9092"}, "STOCKSTREAM_BROKER"),
    ({"ARCHIVE": ""}, "STOCKSTREAM_ARCHIVE"),
    ({"ARCHIVE": "gs://bucket"}, "STOCKSTREAM_ARCHIVE: 'gs://bucket' is not file://path"),
    ({"MODELS": "gs://bucket"}, "STOCKSTREAM_MODELS: 'gs://bucket' is not file://path"),
    ({"MODELS": "s3://Bucket"}, "STOCKSTREAM_MODELS: 's3://Bucket' is not s3://bucket or s3://bucket/prefix"),
    ({"ARCHIVE": "s3://Bucket"}, "STOCKSTREAM_ARCHIVE: 's3://Bucket' is not s3://bucket or s3://bucket/prefix"),
    ({"ARCHIVE": "s3://bucket/a//b"}, "STOCKSTREAM_ARCHIVE: 's3://bucket/a//b': the prefix has an empty part"),
    ({"S3_ENDPOINT": "localhost:9000"}, "STOCKSTREAM_S3_ENDPOINT: must be an address that begins with https:// or http://"),
    ({"S3_ENDPOINT": "http://me:word@localhost:9000"}, "STOCKSTREAM_S3_ENDPOINT: must have no user and password in it"),
    ({"S3_SSE": "none"}, "STOCKSTREAM_S3_SSE"),
    ({"AWS_REGION": "EU 1"}, "STOCKSTREAM_AWS_REGION"),
    ({"MODELS": "none"}, "STOCKSTREAM_MODELS"),
    ({"STATE_DIR": ""}, "STOCKSTREAM_STATE_DIR"),
    ({"MODEL": "../x"}, "STOCKSTREAM_MODEL: '../x' is no model name"),
    ({"SECURITY_PROTOCOL": "SASL_SSL"}, "STOCKSTREAM_SASL_USERNAME is empty, but STOCKSTREAM_SECURITY_PROTOCOL is SASL_SSL"),
    ({"SECURITY_PROTOCOL": "SASL_SSL", "SASL_USERNAME": "me"}, "STOCKSTREAM_SASL_PASSWORD is empty"),
    ({"SASL_USERNAME": "me"}, "STOCKSTREAM_SASL_USERNAME is set, but"),
    ({"MIN_INSYNC_REPLICAS": "2"}, "STOCKSTREAM_MIN_INSYNC_REPLICAS 2 is more than STOCKSTREAM_REPLICATION 1"),
    ({"BROKERS": "b:9092"}, "there is no setting STOCKSTREAM_BROKERS: did you mean STOCKSTREAM_BROKER?"),
    ({"topic_prefx": "x"}, "did you mean STOCKSTREAM_TOPIC_PREFIX?"),
    ({"XQZWV": "1"}, "there is no setting STOCKSTREAM_XQZWV; docs/settings.md lists all"),
]


def environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"STOCKSTREAM_{name}", value)


@pytest.mark.parametrize(("values", "line"), WRONG, ids=lambda value: ",".join(value) if isinstance(value, dict) else "")
def test_a_wrong_setting_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], line: str) -> None:
    environment(monkeypatch, values)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_a_password_is_never_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, {"SASL_PASSWORD": "secret"})
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "secret" not in str(refused.value)


def test_a_certificate_needs_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(AUTHORITY)
    environment(monkeypatch, {"SSL_CAFILE": place})
    with pytest.raises(SettingsError, match="which is no TLS"):
        load_settings()
    environment(monkeypatch, {"SECURITY_PROTOCOL": "SSL"})
    assert load_settings().ssl_cafile == Path(place)


def test_variables_of_the_tests_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, {"REQUIRE_SOMETHING": "1", "TEST_SWITCH": "x"})
    load_settings()


@pytest.mark.parametrize(
    ("given", "servers"),
    [
        ("kafka://[::1]:9092", ["[::1]:9092"]),
        ("[fe80::1]:1,b.example:2", ["[fe80::1]:1", "b.example:2"]),
        ("kafka://a:1, kafka://b:2/", ["a:1", "b:2"]),
    ],
)
def test_brokers(given: str, servers: list[str]) -> None:
    assert Settings(broker=given).bootstrap_servers == servers


@pytest.mark.parametrize(("given", "host"), [("::1", "::1"), ("[::1]", "::1"), ("::", "::"), ("0.0.0.0", "0.0.0.0"), ("my-host.example", "my-host.example")])
def test_web_hosts(given: str, host: str) -> None:
    settings = Settings(web_host=given)
    assert settings.web_host == host and in_url(settings.web_host).startswith("[" if ":" in host else host)


@pytest.mark.parametrize(
    ("place", "path"), [("./data", "data"), ("data", "data"), ("file://data/x", "data/x"), ("file://./a%20b", "a b"), ("a%20b", "a%20b")]
)
def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder(place) == tmp_path / path
    assert Settings(archive=place, models=place, state_dir=Path(place)).archive == str(tmp_path / path)


def test_what_is_absolute_stays_and_none_is_none() -> None:
    settings = Settings(archive="none", models="file:///srv/models")
    assert (settings.archive, settings.models) == ("none", "/srv/models")


def test_a_bucket_and_its_prefix() -> None:
    given = {"s3://bucket": "s3://bucket", "s3://bucket/": "s3://bucket", "s3://b.c-d/a/b c/": "s3://b.c-d/a/b c"}
    assert {url: Settings(archive=url).archive for url in given} == {url: Settings(models=url).models for url in given} == given


def test_a_folder_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    assert require_writable(tmp_path / "a" / "b", "X") == ""
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_can_never_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(SettingsError, match=f"STOCKSTREAM_ARCHIVE: {place} cannot be written: "):
            require_writable(place, "STOCKSTREAM_ARCHIVE")


def test_a_full_disk_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import tempfile

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert "for now (No space left on device; STOCKSTREAM_ARCHIVE)" in require_writable(tmp_path, "STOCKSTREAM_ARCHIVE")


def test_models_may_be_missing_but_not_be_a_file(tmp_path: Path) -> None:
    require_readable(tmp_path / "missing" / "more", "STOCKSTREAM_MODELS")
    require_readable(tmp_path, "STOCKSTREAM_MODELS")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"STOCKSTREAM_MODELS: .*file cannot be read"):
        require_readable(tmp_path / "file", "STOCKSTREAM_MODELS")


def test_lateness_is_a_value_for_all_sources_and_others_by_name() -> None:
    lateness = Settings(lateness_ms="300, yahoo=2500,yahoo.fast=50,b=0").lateness
    assert {name: lateness.of(name) for name in ("yahoo", "yahoo.2", "yahoo.fast", "yahoo.fast.1", "yahoos", "b", "c")} == {
        "yahoo": 2_500, "yahoo.2": 2_500, "yahoo.fast": 50, "yahoo.fast.1": 50, "yahoos": 300, "b": 0, "c": 300,
    }  # fmt: skip
    assert (Settings(lateness_ms="yahoo=1").lateness.of("c"), Settings(lateness_ms=7).lateness.of("c")) == (200, 7)
    assert (Settings().lateness.of("yahoo"), Settings().lateness.of("simulated.1")) == (2_500, 200)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not milliseconds"), ("200,", "'' is not milliseconds"), ("200,300", "the value for all sources is given twice"),
        ("a=1,a=2", "a is given twice"),
        ("60001", "'60001' is not milliseconds from 0 to 60000"), ("a=-1", "'a=-1' is not milliseconds"), ("=5", "'=5' is not milliseconds"),
        ("a=0.5", "'a=0.5' is not milliseconds"),
    ],
)  # fmt: skip
def test_a_lateness_that_is_none_is_one_clear_line(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_LATENESS_MS", text)
    with pytest.raises(SettingsError, match="STOCKSTREAM_LATENESS_MS: ") as error:
        load_settings()
    assert said in str(error.value) and "\n" not in str(error.value)
