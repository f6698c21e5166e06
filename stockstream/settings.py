"""All settings: read once from the environment variables `STOCKSTREAM_*`, then passed on as one frozen object."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stockstream.budgets import Limits
from stockstream.errors import SettingsError
from stockstream.locations import folder, place
from stockstream.transforms.cleaning.limits import composed, symbol_fault
from stockstream.transforms.cleaning.raw_format import RawFormat
from stockstream.transforms.timing import LATENESS, MAX_REVISE_S, REVISE_S, Lateness

SOURCES = ("none", "simulated", "yahoo", "yahoo_polling", "alpha_vantage")
ARCHIVED_TOPICS = ("windows", "alerts", "predictions", "outcomes")
PREFIX = "STOCKSTREAM_"
OF_TESTS = ("STOCKSTREAM_REQUIRE_", "STOCKSTREAM_TEST_")
"""Prefixes of variables that belong to the project's tests. They are no settings, and are accepted."""
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Settings(BaseSettings):
    """Every setting with its default; the environment name is `STOCKSTREAM_` and the upper-cased field name.

    Raises `pydantic.ValidationError`; `load_settings` turns that into one line.
    """

    model_config = SettingsConfigDict(env_prefix="STOCKSTREAM_", frozen=True, extra="ignore")

    broker: str = Field("kafka://localhost:9092", description="Kafka brokers: kafka://host:port, more after commas")
    topic_prefix: str = Field("stockstream.", pattern=r"^[A-Za-z0-9._-]{1,100}$", description="what every topic's name begins with")
    app_id: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,100}$", description="consumer group and changelog prefix; made from TOPIC_PREFIX where empty")
    partitions: int = Field(8, ge=1, le=1024, description="partitions of the topics that we create")
    replication: int = Field(1, ge=1, le=10, description="replicas of the topics that we create; 3 in production")
    min_insync_replicas: int = Field(0, ge=0, le=10, description="min.insync.replicas of our topics; 0: 2 where REPLICATION is 3 or more, else 1")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field("PLAINTEXT", description="how to talk to the brokers")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field("SCRAM-SHA-512", description="SASL mechanism where the protocol is SASL_*")
    sasl_username: str = Field("", description="SASL user")
    sasl_password: SecretStr = Field(SecretStr(""), description="SASL password")
    ssl_cafile: Path | None = Field(None, description="certificate authority file for TLS; the system's where empty")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field("zstd", description="codec of what we produce")
    session_timeout_s: float = Field(6.0, ge=1, le=300, description="a worker without a heartbeat for this long loses its partitions")

    source: Annotated[tuple[str, ...], NoDecode] = Field(("none",), description="market-data sources of this worker, by comma")
    symbols: Annotated[tuple[str, ...], NoDecode] = Field((), description="symbols that the source brings, by comma, added to the watchlist at start")
    seed: int = Field(1, ge=0, description="seed of the simulated market")

    yahoo_stream_url: str = Field("wss://streamer.finance.yahoo.com/?version=2", description="address of Yahoo's stream of prices")
    yahoo_query_url: str = Field("", description="address of Yahoo's REST service; yfinance's own where empty")
    yahoo_budget: str = Field("1/s,60/min,2000/d", description="the most requests to Yahoo's REST service, of all workers together: by second, minute and day")
    alpha_vantage_url: str = Field("https://www.alphavantage.co/query", description="address of Alpha Vantage")
    alpha_vantage_key: SecretStr = Field(SecretStr(""), description="key of Alpha Vantage")
    alpha_vantage_budget: str = Field("1/s,25/d", description="the most requests to Alpha Vantage, of all workers together; the free plan's where not set")
    raw_format: str = Field("", description="format of foreign JSON in ticks.raw: a preset, a TOML file, or PREFIX=FORMAT by source; belongs to the log")

    lateness_ms: str = Field(
        LATENESS, description="how far a source's watermark must pass a second's end before it closes: for all, and by source; fixed when it is heard first"
    )
    revise_s: int = Field(REVISE_S, ge=1, le=MAX_REVISE_S, description="how many seconds back a late tick may change; belongs to the log")
    idle_ms: int = Field(1_000, ge=100, le=600_000, description="wall time without ticks after which a source's open second is closed")
    plain_transport: bool = Field(False, description="fetch ahead as aiokafka does, and own frames too; results come later; for finding the cause of faults")
    gather_ms: int = Field(160, ge=0, le=1_000, description="how long ticks.raw is gathered into one chunk")

    archive: str = Field(
        "file://./data", validate_default=True, description="where raw and processed data go: a folder (path or file://path), s3://bucket/prefix, or none"
    )
    archive_flush_s: float = Field(30.0, gt=0, le=3_600, description="a raw object is written this long after its first record at the latest")
    archive_max_bytes: int = Field(8_000_000, ge=1_000, description="a raw object is written at this size, before compression")
    archive_buffer_bytes: int = Field(64_000_000, ge=100_000, description="what the archive of a worker may hold in memory; more is read back from Kafka later")
    archive_topics: Annotated[tuple[str, ...], NoDecode] = Field(
        ARCHIVED_TOPICS, description="which of windows, alerts, predictions and outcomes are archived beside the ticks, by comma; or none"
    )
    compact: bool = Field(True, description="the worker with partition 0 compacts the archive, in a child process at low priority")
    models: str = Field(
        "file://./data/models", validate_default=True,
        description="where models are kept, of the demo and of workers: a folder (path or file://path), or s3://bucket/prefix",
    )
    s3_endpoint: str = Field("", description="address of the S3 service; AWS's own where empty")
    aws_endpoint: str = Field("", description="address of all other AWS services (Athena, Glue); AWS's own where empty")
    aws_region: str = Field("", pattern=r"^[a-z0-9-]{0,40}$", description="AWS region; where empty by AWS_REGION or the profile, else us-east-1")
    s3_sse: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = Field("", description="server-side encryption of new objects; the bucket's own where empty")
    s3_kms_key: str = Field("", description="KMS key of that encryption; the account's default key where empty")
    s3_requester_pays: bool = Field(False, description="whether we pay for requests to a bucket of another account")
    state_dir: Path = Field(Path("./data/state"), validate_default=True, description="small local files: the simulation's log of events, broker logs")
    model: str = Field("xgboost", description="name of the champion model that score loads")

    web_host: str = Field("127.0.0.1", description="address that the web views bind to")
    web_port: int = Field(6066, ge=1, le=65_535, description="port of the web views")
    faust_pages: bool = Field(False, description="serve Faust's own pages (tables, routing, statistics) beside the views")
    reason_file: Path | None = Field(None, description="file that takes the last line of a worker that ends by itself; set by `stockstream worker`")
    alerts: str = Field("", description="TOML file with groups of symbols, and the routes that alerts are sent to; it is read again when it changes")
    retention_raw_days: int = Field(7, ge=1, description="days that ticks.raw and ticks.clean are kept")
    retention_derived_days: int = Field(1, ge=1, description="days that the other derived topics are kept")

    @field_validator("broker")
    @classmethod
    def _broker_is_kafka(cls, value: str) -> str:
        return ",".join(f"kafka://{_server(part.strip())}" for part in value.split(","))

    @field_validator("source", "symbols", "archive_topics", mode="before")
    @classmethod
    def _by_comma(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = tuple(part.strip() for part in value.split(",")) if value.strip() else ()
        if "" in parts:
            raise ValueError("an entry of the list is empty: remove the extra comma")
        return parts

    @field_validator("source")
    @classmethod
    def _known_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SOURCES:
                raise ValueError(f"{name!r} is not a source; choose from: {', '.join(SOURCES)}")
        return value

    @field_validator("archive_topics")
    @classmethod
    def _known_topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("none",):
            return ()
        for name in value:
            if name not in ARCHIVED_TOPICS:
                raise ValueError(f"{name!r} is not archived; choose from: {', '.join(ARCHIVED_TOPICS)}; or none")
        return tuple(name for name in ARCHIVED_TOPICS if name in value)

    @field_validator("yahoo_budget", "alpha_vantage_budget")
    @classmethod
    def _budget(cls, value: str) -> str:
        return str(Limits.parse(value))

    @field_validator("alpha_vantage_url")
    @classmethod
    def _without_key(cls, value: str) -> str:
        parts = _http_address(value)
        if "apikey" in parts.query.lower() or "@" in parts.netloc:
            raise ValueError("must have no key in it, because addresses are logged: use STOCKSTREAM_ALPHA_VANTAGE_KEY")
        return value

    @field_validator("alpha_vantage_key", mode="before")
    @classmethod
    def _stripped_key(cls, value: Any) -> SecretStr:
        return SecretStr((value.get_secret_value() if isinstance(value, SecretStr) else str(value)).strip())

    @field_validator("symbols")
    @classmethod
    def _possible_symbols(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for symbol in value:
            if fault := symbol_fault(symbol):
                raise ValueError(f"{symbol!r}: {fault}")
        return tuple(map(composed, value))

    @field_validator("lateness_ms", mode="before")
    @classmethod
    def _lateness(cls, value: Any) -> str:
        Lateness.parse(str(value))
        return str(value)

    @field_validator("raw_format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        RawFormat.parse(value, read_format_file)
        return value

    @field_validator("archive", "models")
    @classmethod
    def _absolute_place(cls, value: str) -> str:
        try:
            return value if value == "none" else place(value)
        except SettingsError as error:
            raise ValueError(str(error)) from error

    @field_validator("models")
    @classmethod
    def _some_models(cls, value: str) -> str:
        if value == "none":
            raise ValueError("models need a place; a folder that is empty or missing is enough")
        return value

    @field_validator("s3_endpoint", "aws_endpoint")
    @classmethod
    def _address_without_key(cls, value: str) -> str:
        if value and "@" in _http_address(value).netloc:
            raise ValueError("must have no user and password in it, because addresses are logged")
        return value.rstrip("/")

    @field_validator("state_dir", mode="before")
    @classmethod
    def _some_folder(cls, value: Any) -> Any:
        try:
            return folder(str(value))
        except SettingsError as error:
            raise ValueError(str(error)) from error

    @field_validator("ssl_cafile", "reason_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("ssl_cafile")
    @classmethod
    def _holds_certificates(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                ssl.create_default_context(cafile=str(value))
            except ssl.SSLError as error:
                raise ValueError(f"{value.absolute()} holds no certificate in PEM form ({error.reason or error})") from error
            except OSError as error:
                raise ValueError(f"{value.absolute()} cannot be read: {error.strerror or error}") from error
        return value

    @field_validator("model")
    @classmethod
    def _model_name(cls, value: str) -> str:
        if not _MODEL_NAME.fullmatch(value):
            raise ValueError(f"{value!r} is no model name: letters, digits, dot, dash and underscore, 64 at most")
        return value

    @field_validator("web_host")
    @classmethod
    def _host(cls, value: str) -> str:
        host = value.strip().removeprefix("[").removesuffix("]")
        if not _is_host(host):
            raise ValueError(f"{value!r} is neither an address nor a host name")
        return host

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        if self.min_insync_replicas > self.replication:
            raise ValueError(f"STOCKSTREAM_MIN_INSYNC_REPLICAS {self.min_insync_replicas} is more than STOCKSTREAM_REPLICATION {self.replication}")
        protocol = f"STOCKSTREAM_SECURITY_PROTOCOL is {self.security_protocol}"
        if self.ssl_cafile is not None and "SSL" not in self.security_protocol:
            raise ValueError(f"STOCKSTREAM_SSL_CAFILE is set, but {protocol}, which is no TLS: use SSL or SASL_SSL")
        sasl = self.security_protocol.startswith("SASL")
        for name, given in (("USERNAME", bool(self.sasl_username)), ("PASSWORD", bool(self.sasl_password.get_secret_value()))):
            if given != sasl:
                what = f"is {'set' if given else 'empty'}, but {protocol}"
                raise ValueError(f"STOCKSTREAM_SASL_{name} {what}" + (": use SASL_SSL or SASL_PLAINTEXT" if given else ""))
        return self

    @property
    def bootstrap_servers(self) -> list[str]:
        """`host:port` of each broker."""
        return [server.removeprefix("kafka://") for server in self.broker.split(",")]

    @property
    def group(self) -> str:
        """The consumer group, which is also the prefix of the changelogs' names."""
        return self.app_id or f"{self.topic_prefix.rstrip('.-_')}-app"

    @property
    def insync_replicas(self) -> int:
        return self.min_insync_replicas or (2 if self.replication >= 3 else 1)

    @property
    def lateness(self) -> Lateness:
        """`lateness_ms` by source."""
        return Lateness.parse(self.lateness_ms)

    @property
    def foreign_messages(self) -> RawFormat | None:
        """The formats that `raw_format` names; None where it is empty. Raises `ValueError` if a file has become unreadable since the start."""
        return RawFormat.parse(self.raw_format, read_format_file)

    def topic(self, name: str) -> str:
        """Full name of a topic, e.g. `ticks.raw` -> `stockstream.ticks.raw`."""
        return self.topic_prefix + name


def read_format_file(path: str) -> str:
    """The text of a format file. Raises `OSError`."""
    return Path(path).expanduser().read_text(encoding="utf-8")


def _http_address(value: str) -> SplitResult:
    """The parts of an address. Raises `ValueError` if it is none of HTTP."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address that begins with https:// or http://")
    return parts


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return _HOST_NAME.fullmatch(host) is not None


def _server(text: str) -> str:
    """`host:port` of a broker, an IPv6 address in brackets. Raises `ValueError`."""
    try:
        parts = urlsplit(text if "//" in text else f"kafka://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:                                          # the port is no number, or brackets do not match
        raise ValueError(f"{text!r} is not kafka://host:port ({error})") from None
    if parts.scheme != "kafka" or not host or not port or parts.username or parts.path.strip("/") or parts.query or parts.fragment or not _is_host(host):
        raise ValueError(f"{text!r} is not kafka://host:port")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _require_known_variables() -> None:
    known = {name.upper() for name in Settings.model_fields}
    for name in sorted(os.environ):
        own = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and own not in known and not name.startswith(OF_TESTS):
            near = difflib.get_close_matches(own, known, 1)
            raise SettingsError(f"there is no setting {name}" + (f": did you mean {PREFIX}{near[0]}?" if near else "; docs/settings.md lists all"))


def load_settings(**changes: Any) -> Settings:
    """Loads the settings from the environment; `changes` take precedence.

    Raises `SettingsError` with one line that names the first invalid setting, or an unknown variable.
    """
    _require_known_variables()
    try:
        return Settings(**changes)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsError(message) from None
        name = PREFIX + str(first["loc"][0]).upper()
        got = repr(first["input"])
        has_secret = "apikey" in got.lower() or "@" in got               # of an address
        repeated = got in message or (first["type"] == "value_error" and str(first["input"]) in message)
        shown = "" if has_secret or repeated else f" (got {got})"
        raise SettingsError(" ".join(f"{name}: {message}{shown}".split())) from None
