"""A store in a bucket of Amazon S3, or of a service with the same API."""

from __future__ import annotations

import base64
import functools
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from botocore import exceptions as aws

from stockstream.aws import NO_CREDENTIALS, asked, cannot_be_sent
from stockstream.errors import ArchiveError, ArchiveUnavailable, SettingsError
from stockstream.locations import bucket_and_prefix, place
from stockstream.settings import Settings
from stockstream.sinks.entries import Entry
from stockstream.wording import one_line

T = TypeVar("T")
PROBE = ".writable"
"""An empty object that shows whether objects can be created, and only once."""
DEFAULT_REGION = "us-east-1"
CONNECT_S, ANSWER_S = 5, 30
ATTEMPTS = 2
"""More than one, because a connection that the service closed while it was idle is noticed only by the next request."""
CONNECTIONS = 16
LOGGERS = ("boto3", "botocore", "s3transfer", "urllib3")
"""Below INFO they log headers and signatures; at INFO, where they found credentials."""

_REFUSED = {
    "NoSuchBucket": "there is no such bucket",
    "InvalidBucketName": "this is not the name of a bucket",
    "AccessDenied": "access is denied: it needs s3:ListBucket on the bucket, and s3:GetObject and s3:PutObject on its objects, and s3:DeleteObject to compact",
    "AllAccessDisabled": "access is denied: the bucket is disabled",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "ExpiredToken": "the credentials have expired",
    "TokenRefreshRequired": "the credentials have expired",
    "InvalidToken": "the session token is not valid",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "PermanentRedirect": "the bucket is in another region: set STOCKSTREAM_AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set STOCKSTREAM_AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region: set STOCKSTREAM_AWS_REGION",
    "KMS.NotFoundException": "there is no such KMS key: see STOCKSTREAM_S3_KMS_KEY",
    "KMS.DisabledException": "the KMS key is disabled: see STOCKSTREAM_S3_KMS_KEY",
}
"""By S3's error code: what is wrong with the settings, the credentials or the bucket."""
_SIGNED_OUT = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch")


class StoreRefused(ArchiveUnavailable):
    """The settings, the credentials or the bucket do not allow the request. It succeeds once they do, without a restart."""


class MissingObject(ArchiveError):
    """There is no such object."""


@dataclass(frozen=True)
class S3Access:
    """How a bucket is reached. What is empty here comes by the usual AWS means: environment, profile, role of the machine, defaults of the bucket."""

    endpoint: str = ""
    region: str = ""
    encryption: str = ""
    kms_key: str = ""
    requester_pays: bool = False

    @classmethod
    def of(cls, settings: Settings) -> S3Access:
        return cls(settings.s3_endpoint, settings.aws_region, settings.s3_sse, settings.s3_kms_key, settings.s3_requester_pays)


@functools.lru_cache(maxsize=8)
def _client(endpoint: str, region: str) -> Any:
    """The client of an endpoint. It may be used by several threads. Raises `botocore`'s errors."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
    import boto3  # takes a third of a second, and most archives are folders
    from botocore.config import Config

    session = boto3.Session()
    config = Config(
        connect_timeout=CONNECT_S, read_timeout=ANSWER_S, max_pool_connections=CONNECTIONS, retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": "path"} if endpoint else {},
    )  # fmt: skip
    return session.client("s3", endpoint_url=endpoint or None, region_name=region or session.region_name or DEFAULT_REGION, config=config)


class S3Store:
    """A store in a bucket, under a prefix. An object is created by one conditional request (`If-None-Match: *`), so it is complete or absent.

    Raises `SettingsError` for a URL other than `s3://bucket` or `s3://bucket/prefix`.
    """

    def __init__(self, url: str, access: S3Access | None = None) -> None:
        self.bucket, self.prefix = bucket_and_prefix(url)
        self.access = access or S3Access()
        self.url = place(url)
        self._payer = {"RequestPayer": "requester"} if self.access.requester_pays else {}
        sse = {"ServerSideEncryption": self.access.encryption} if self.access.encryption else {}
        self._put = {**self._payer, **sse, **({"SSEKMSKeyId": self.access.kms_key} if self.access.kms_key else {})}

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._call("write", name, lambda s3, at: s3.put_object(**at, Body=data, IfNoneMatch="*", **self._put))
        except _Exists:
            return self._holds(name, data)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Writes the object, whether or not it exists. Not for an archive, whose objects never change."""
        self._call("write", name, lambda s3, at: s3.put_object(**at, Body=data, **self._put))

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        for found in self.entries(prefix, start_after):
            yield found.name

    def entries(self, prefix: str, start_after: str = "") -> Iterator[Entry]:
        more: dict[str, str] = {"StartAfter": self.prefix + start_after} if start_after else {}
        while True:
            page = self._call("list", prefix, functools.partial(self._page, prefix=prefix, more=more))
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):                        # the console's folders
                    yield Entry(item["Key"].removeprefix(self.prefix), item["Size"], item["LastModified"], item["ETag"])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, s3: Any, _: Any, *, prefix: str, more: dict[str, str]) -> Any:
        return s3.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix + prefix, **more, **self._payer)

    def read(self, name: str, tail: int = 0) -> bytes:
        return self._get(name, f"bytes=-{tail}" if tail else "")

    def read_range(self, name: str, first: int, end: int) -> bytes:
        return self._get(name, f"bytes={first}-{end - 1}") if end > first else b""

    def size(self, name: str) -> int | None:
        """A ranged read and not HEAD, whose answer does not show whether the object or the bucket is missing."""
        try:
            got = self._call("look at", name, lambda s3, at: s3.get_object(**at, Range="bytes=0-0", **self._payer))
        except _Empty:
            return 0
        except MissingObject:
            return None
        return int(str(got.get("ContentRange") or f"/{got['ContentLength']}").rpartition("/")[2])

    def delete(self, name: str) -> None:
        self._call("delete", name, lambda s3, at: s3.delete_object(**at, **self._payer))

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        """The lifecycle rules of the whole bucket."""
        try:
            found = self._call("read", "the lifecycle rules", lambda s3, _: s3.get_bucket_lifecycle_configuration(Bucket=self.bucket))
        except MissingObject:
            return ()
        return tuple(found["Rules"])

    def set_lifecycle(self, rules: Sequence[dict[str, Any]]) -> None:
        """Replaces the lifecycle rules of the whole bucket."""
        of = {"Rules": [*rules]}
        self._call("change", "the lifecycle rules", lambda s3, _: s3.put_bucket_lifecycle_configuration(Bucket=self.bucket, LifecycleConfiguration=of))

    def _get(self, name: str, span: str) -> bytes:
        def get(s3: Any, at: dict[str, str]) -> bytes:
            data: bytes = s3.get_object(**at, **({"Range": span} if span else {}), **self._payer)["Body"].read()
            return data

        try:
            return self._call("read", name, get)
        except _Empty:
            return b""

    def _holds(self, name: str, data: bytes) -> bool:
        """Whether the object that exists is the one to create: an earlier attempt succeeded, and its answer was lost."""
        try:
            found = self._call("look at", name, lambda s3, at: s3.head_object(**at, ChecksumMode="ENABLED", **self._payer))
        except ArchiveError:
            return False
        return bool(found["ContentLength"] == len(data)) and found.get("ChecksumCRC32") == base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()

    def require_writable(self, name: str) -> str:
        """Tries to list and to create an object. `name` is the setting that names the bucket.

        Returns why it cannot be written for now; empty if it can. Raises `SettingsError` if settings, credentials or bucket have to change.
        """
        try:
            self.require_readable(name)
            if self.create(PROBE, b"") and self.create(PROBE, b"another"):
                raise SettingsError(f"{name}: {self.url} creates an object twice: the service does not support conditional writes (If-None-Match)")
        except StoreRefused as error:
            raise SettingsError(f"{name}: {error}") from error
        except ArchiveUnavailable as error:
            return f"{error} ({name})"
        return ""

    def require_readable(self, name: str) -> None:
        """Lists the bucket. Raises `SettingsError` if settings, credentials or bucket have to change, `ArchiveUnavailable` if it cannot be read for now."""
        try:
            next(self.list("", "~"), None)                               # no name of ours comes after it, so the answer is short
        except StoreRefused as error:
            raise SettingsError(f"{name}: {error}") from error

    def _call(self, verb: str, name: str, request: Callable[[Any, dict[str, str]], T]) -> T:
        doing = f"{self.url}: cannot {verb} {name or 'its objects'}"
        try:
            return request(_client(self.access.endpoint, self.access.region), {"Bucket": self.bucket, "Key": self.prefix + name})
        except aws.ClientError as error:
            self._refused(doing, name, error)
        except (aws.ConnectionError, aws.HTTPClientError) as error:
            if reason := cannot_be_sent(error):
                _client.cache_clear()                                    # as for those that have expired
                raise StoreRefused(f"{doing}: {reason}") from error
            where = self.access.endpoint or asked(error)
            raise ArchiveUnavailable(f"{doing}: no answer from {where} ({type(error).__name__})") from error
        except aws.NoCredentialsError as error:
            _client.cache_clear()
            raise StoreRefused(f"{doing}: {NO_CREDENTIALS}") from error
        except aws.BotoCoreError as error:                               # an unknown profile, a role that cannot be assumed
            _client.cache_clear()
            raise StoreRefused(f"{doing}: {one_line(str(error))}") from error
        except (OSError, ValueError) as error:
            raise ArchiveUnavailable(f"{doing}: {one_line(str(error) or type(error).__name__)}") from error

    def _refused(self, doing: str, name: str, error: aws.ClientError) -> NoReturn:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ("PreconditionFailed", "412"):
            raise _Exists(name) from error
        if code in ("InvalidRange", "416"):
            raise _Empty(name) from error
        if code in ("NoSuchKey", "NoSuchLifecycleConfiguration", "404"):
            raise MissingObject(f"{self.url}: there is no {name}") from error
        if code in ("ConditionalRequestConflict", "409"):
            raise ArchiveUnavailable(f"{doing}: another write of it is in progress") from error
        if code in _SIGNED_OUT:
            _client.cache_clear()                                        # the next attempt reads the credentials anew
        if code in _REFUSED or status in (301, 400, 401, 403):
            raise StoreRefused(f"{doing}: {_REFUSED.get(code) or f'the service refuses it ({code or status})'}") from error
        raise ArchiveUnavailable(f"{doing}: the service fails ({code or status})") from error


class _Exists(ArchiveError):
    """412: an object of this name exists."""


class _Empty(ArchiveError):
    """416: the range is outside the object."""
