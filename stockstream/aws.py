"""Clients of AWS services, and what they refuse in one line. (Objects in S3: `sinks/s3.py`.)"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as aws

from stockstream.errors import StockstreamError
from stockstream.settings import Settings
from stockstream.wording import one_line

DEFAULT_REGION = "us-east-1"
CONNECT_S, ANSWER_S = 5, 30
LOGGERS = ("boto3", "botocore", "urllib3")
"""Below INFO they log headers and signatures; at INFO, where they found credentials."""
_CREDENTIALS = {
    "ExpiredToken": "the credentials have expired: sign in again",
    "ExpiredTokenException": "the credentials have expired: sign in again",
    "RequestExpired": "the credentials have expired, or the clock of this machine is wrong",
    "UnrecognizedClientException": "the access key is not known there",
    "InvalidClientTokenId": "the access key is not known there",
    "InvalidSignatureException": "the secret key does not belong to the access key",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
}
_DENIED = ("AccessDenied", "AccessDeniedException")
_BUSY = ("ThrottlingException", "TooManyRequestsException", "InternalServerException", "InternalServiceException", "OperationTimeoutException")

NO_CREDENTIALS = "there are no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_OF_CREDENTIALS = re.compile(r"AWS4-|Signature=|Credential=|SignedHeaders|security-token|\b(?:AKIA|ASIA)[A-Z0-9]{8,}", re.IGNORECASE)
"""What a message has that repeats the request's signature, token or access key."""


class AwsError(StockstreamError):
    """An AWS service refuses a request. `code` is its own name for the reason, empty if the request was not made."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class AwsUnavailable(AwsError):
    """An AWS service does not answer, or has too much to do."""

    retriable = True


def client(service: str, settings: Settings) -> Any:
    """The client of a service at `STOCKSTREAM_AWS_ENDPOINT`, or at AWS. Raises `AwsError` without usable credentials."""
    with asking(service):
        return _client(service, settings.aws_endpoint, settings.aws_region)


@functools.lru_cache(maxsize=16)
def _client(service: str, endpoint: str, region: str) -> Any:
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
    import boto3  # takes a third of a second
    from botocore.config import Config

    session = boto3.Session()
    config = Config(connect_timeout=CONNECT_S, read_timeout=ANSWER_S, retries={"mode": "standard", "total_max_attempts": 3})
    return session.client(service, endpoint_url=endpoint or None, region_name=region or session.region_name or DEFAULT_REGION, config=config)


@contextlib.contextmanager
def asking(service: str) -> Iterator[None]:
    """What the service refuses inside is raised as `AwsError`, and `AwsUnavailable` if it may work later: one line that begins with the service's name."""
    title = {"athena": "Athena", "glue": "Glue", "s3": "S3"}.get(service, service)
    try:
        yield
    except aws.ClientError as error:
        found = error.response.get("Error", {})
        code, message = str(found.get("Code", "")), _without_credentials(one_line(found.get("Message", "")))
        if code in _CREDENTIALS:
            _client.cache_clear()                                        # the next client reads the credentials anew
            raise AwsError(f"{title}: {_CREDENTIALS[code]}", code) from error
        if code in _DENIED:
            raise AwsError(f"{title}: access is denied: {message or 'no reason is given'}", code) from error
        if code in _BUSY:
            raise AwsUnavailable(f"{title} has too much to do or fails ({code}): try again later", code) from error
        raise AwsError(f"{title}: {message or code}", code) from error
    except (aws.ConnectionError, aws.HTTPClientError) as error:
        if reason := cannot_be_sent(error):
            raise AwsError(f"{title}: {reason}") from error
        raise AwsUnavailable(f"{title}: no answer from {asked(error)} ({type(error).__name__})") from error
    except aws.NoCredentialsError as error:
        raise AwsError(f"{title}: {NO_CREDENTIALS}") from error
    except aws.BotoCoreError as error:                                   # an unknown profile, a role that cannot be assumed
        raise AwsError(f"{title}: {one_line(error)}") from error


def _without_credentials(message: str) -> str:
    """The message of a service; empty if it repeats parts of the credentials, as some do where the signature is not what they expect."""
    return "" if _OF_CREDENTIALS.search(message) else message


def asked(error: aws.BotoCoreError) -> str:
    """The address that did not answer, without the request, if the error has it."""
    address = urlsplit(str(error.kwargs.get("endpoint_url") or ""))
    return f"{address.scheme}://{address.netloc}" if address.netloc else "AWS"


def cannot_be_sent(error: aws.BotoCoreError) -> str:
    """Why no request can be made with these credentials; empty if the service just does not answer."""
    if not isinstance(error.kwargs.get("error"), ValueError):            # of http.client, whose text repeats the header
        return ""
    return "the access key or the session token has a line break or another character that cannot be sent: see AWS_SESSION_TOKEN and the profile"
