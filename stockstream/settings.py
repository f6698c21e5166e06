"""All settings, read once at the edge from `STOCKSTREAM_*` and handed inwards, frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stockstream.errors import SettingsError

SOURCES = ("none", "simulated")


class Settings(BaseSettings):
    """Every setting with its default; the environment name is `STOCKSTREAM_` and the upper-cased field name.

    Raises `pydantic.ValidationError`; `load_settings` turns that into one line.
    """

    model_config = SettingsConfigDict(env_prefix="STOCKSTREAM_", frozen=True, extra="ignore")

    broker: str = Field("kafka://localhost:9092", description="Kafka brokers: kafka://host:port, more after commas")
    topic_prefix: str = Field("stockstream.", pattern=r"^[A-Za-z0-9._-]{1,100}$", description="what every topic's name begins with")
    app_id: str = Field("", description="consumer group and changelog prefix; made from TOPIC_PREFIX where empty")
    partitions: int = Field(8, ge=1, le=1024, description="partitions of the topics that we create")
    replication: int = Field(1, ge=1, le=10, description="replicas of the topics that we create; 3 in production")
    min_insync_replicas: int = Field(0, ge=0, le=10, description="min.insync.replicas of our topics; 0: 2 where REPLICATION is 3 or more, else 1")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field("PLAINTEXT", description="how to talk to the brokers")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field("SCRAM-SHA-512", description="SASL mechanism where the protocol is SASL_*")
    sasl_username: str = Field("", description="SASL user")
    sasl_password: SecretStr = Field(SecretStr(""), description="SASL password")
    ssl_cafile: Path | None = Field(None, description="certificate authority file for TLS; the system's where empty")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field("zstd", description="codec of what we produce")
    session_timeout_s: float = Field(6.0, ge=1, le=300, description="a worker not heard for this long loses its partitions")

    source: Annotated[tuple[str, ...], NoDecode] = Field(("none",), description="market-data sources of this worker, by comma: none, simulated")
    symbols: Annotated[tuple[str, ...], NoDecode] = Field((), description="symbols that the source brings, by comma, added to the watchlist at start")
    seed: int = Field(1, ge=0, description="seed of the simulated market")

    lateness_ms: int = Field(200, ge=0, le=60_000, description="how far the clock must pass a second's end before it closes; belongs to the log")
    revise_s: int = Field(30, ge=1, le=120, description="how many seconds back a late tick may change; belongs to the log")
    idle_ms: int = Field(1_000, ge=100, le=600_000, description="wall time without ticks after which a source's open second is closed")
    gather_ms: int = Field(160, ge=0, le=1_000, description="how long ticks.raw is gathered into one chunk")

    archive: str = Field("file://./data", description="where raw and processed data go: file://path, or none")
    archive_flush_s: float = Field(30.0, gt=0, le=3_600, description="a raw object is written this long after its first record at the latest")
    archive_max_bytes: int = Field(8_000_000, ge=1_000, description="a raw object is written at this size, before compression")
    archive_buffer_bytes: int = Field(64_000_000, ge=100_000, description="what the archive of a worker may hold in memory; more is read back from Kafka later")
    models: str = Field("file://./data/models", description="where models are kept, of the demo and of workers: file://path")
    state_dir: Path = Field(Path("./data/state"), description="small local files: the simulation's log of events, broker logs")
    model: str = Field("xgboost", description="name of the champion model that score loads")

    web_host: str = Field("127.0.0.1", description="address that the web views bind to")
    web_port: int = Field(6066, ge=1, le=65_535, description="port of the web views")
    alert_routes: str = Field("", description="where alerts are sent besides the topic; reserved")
    retention_raw_days: int = Field(7, ge=1, description="days that ticks.raw and ticks.clean are kept")
    retention_derived_days: int = Field(1, ge=1, description="days that the other derived topics are kept")
    s3_endpoint: str = Field("", description="S3 endpoint; reserved")
    aws_region: str = Field("us-east-1", description="AWS region; reserved")

    @field_validator("broker")
    @classmethod
    def _broker_is_kafka(cls, value: str) -> str:
        for server in value.split(","):
            parts = urlsplit(server if "//" in server else f"kafka://{server}")
            if parts.scheme != "kafka" or not parts.hostname or not parts.port:
                raise ValueError(f"{server!r} is not kafka://host:port")
        return value

    @field_validator("source", "symbols", mode="before")
    @classmethod
    def _by_comma(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _known_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SOURCES:
                raise ValueError(f"{name!r} is no source; there are: {', '.join(SOURCES)}")
        return value

    @field_validator("archive", "models")
    @classmethod
    def _store_url(cls, value: str) -> str:
        if value != "none" and not value.startswith("file://"):
            raise ValueError(f"{value!r} is not file://path")
        return value

    @model_validator(mode="after")
    def _insync_fits(self) -> Settings:
        if self.min_insync_replicas > self.replication:
            raise ValueError(f"min_insync_replicas {self.min_insync_replicas} is more than replication {self.replication}")
        return self

    @property
    def bootstrap_servers(self) -> list[str]:
        """`host:port` of each broker."""
        return [server.removeprefix("kafka://") for server in self.broker.split(",")]

    @property
    def group(self) -> str:
        """The consumer group, which also begins the changelogs' names."""
        return self.app_id or f"{self.topic_prefix.rstrip('.-_')}-app"

    @property
    def insync_replicas(self) -> int:
        return self.min_insync_replicas or (2 if self.replication >= 3 else 1)

    def topic(self, name: str) -> str:
        """Full name of a topic, e.g. `ticks.raw` -> `stockstream.ticks.raw`."""
        return self.topic_prefix + name


def load_settings(**changes: Any) -> Settings:
    """Settings from the environment, `changes` winning.

    Raises `SettingsError` with one line that names the first setting at fault.
    """
    try:
        return Settings(**changes)
    except ValidationError as error:
        first = error.errors()[0]
        name = "STOCKSTREAM_" + str(first["loc"][0]).upper() if first["loc"] else "STOCKSTREAM_*"
        got = f" (got {first['input']!r})" if first["loc"] else ""
        raise SettingsError(f"{name}: {first['msg'].removeprefix('Value error, ')}{got}") from None
