"""Hosts in URLs, and places in settings and options: a folder, as `file://path` or a plain path, absolute or relative to the working directory; a bucket."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote

from stockstream.errors import SettingsError

FILE_URL = "file://"
S3_URL = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NOT_FOR_NOW = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR}
"""Errors that may pass without a changed setting, such as a full disk or an unreachable network file system."""


def folder(place: str) -> Path:
    """The absolute path that `place` names; symbolic links are kept. `%xx` is decoded in a `file://` URL, not in a plain path.

    Raises `SettingsError` if it is empty or a URL of another kind.
    """
    url = place.startswith(FILE_URL)
    path = unquote(place.removeprefix(FILE_URL)) if url else place
    if not path.strip() or "\0" in path or (not url and "://" in place):
        raise SettingsError(f"{place!r} is not file://path, nor a plain path")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:                                        # `~somebody`
        raise SettingsError(f"{place!r}: {error}") from error


def place(url: str) -> str:
    """What `url` names: the absolute path of a folder, or `s3://bucket/prefix`. Raises `SettingsError` if it is neither."""
    if not url.startswith(S3_URL):
        return str(folder(url))
    bucket, prefix = bucket_and_prefix(url)
    return f"{S3_URL}{bucket}/{prefix}".rstrip("/")


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; the prefix ends with a slash, or is empty. Raises `SettingsError`."""
    bucket, _, prefix = url.removeprefix(S3_URL).partition("/")
    prefix = prefix.strip("/")
    if not url.startswith(S3_URL) or not _BUCKET.fullmatch(bucket):
        raise SettingsError(f"{url!r} is not s3://bucket or s3://bucket/prefix")
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise SettingsError(f"{url!r}: the prefix has an empty part, or one of dots")
    return bucket, f"{prefix}/" if prefix else ""


def in_url(host: str) -> str:
    """A host as written in URLs, with an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def archive_folder(place: str) -> Path:
    """`folder` of an archive. Raises `SettingsError`."""
    try:
        return folder(place)
    except SettingsError as error:
        raise SettingsError(f"archive {error}") from error


def require_writable(path: Path, name: str) -> str:
    """Creates the folder if it is missing, and tries to write to it. `name` is the setting that names the folder.

    Returns why it cannot be written for now; empty if it can. Raises `SettingsError` if waiting cannot help.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(prefix=".writable-", dir=path)
        os.close(handle)
        Path(probe).unlink(missing_ok=True)
    except OSError as error:
        if error.errno in _NOT_FOR_NOW:
            return f"{path} cannot be written for now ({error.strerror}; {name})"
        raise SettingsError(f"{name}: {path} cannot be written: {_reason(error)}") from error
    return ""


def require_readable(path: Path, name: str) -> None:
    """Accepts a folder that can be listed, and one that does not exist yet. Raises `SettingsError` for any other."""
    try:
        with os.scandir(path):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in _NOT_FOR_NOW:
            raise SettingsError(f"{name}: {path} cannot be read: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return "a file is in its place" if isinstance(error, FileExistsError) else error.strerror or str(error)
