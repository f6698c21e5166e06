"""Trino's zstd decoder (aircompressor), on which Athena is built. Maven fetches it once; it is kept under ~/.cache/stockstream."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
POM, PROGRAM = HERE / "pom.xml", HERE / "decode.bsh"


class NoDecoder(RuntimeError):
    """It cannot be fetched or run; the text is one line."""


def jars() -> Path:
    """The folder with the decoder. Fetched beside its place and then renamed, so nothing is ever half done. Raises `NoDecoder`."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stockstream"
    place = caches / f"trino-zstd-{hashlib.sha256(POM.read_bytes()).hexdigest()[:8]}"
    if place.is_dir():
        return place
    caches.mkdir(parents=True, exist_ok=True)
    with (caches / "trino-zstd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.is_dir():
            return place
        beside = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=caches))
        try:
            _run(["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", "-DexcludeTransitive=true", f"-DoutputDirectory={beside}"])
            beside.rename(place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return place


def decode(objects: Sequence[bytes], folder: Path) -> list[bytes | str]:
    """What the decoder makes of each object: its content, or why it refuses it. Takes a second. Raises `NoDecoder`."""
    paths = [folder / str(number) for number in range(len(objects))]
    for path, data in zip(paths, objects, strict=True):
        path.write_bytes(data)
    _run(["java", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*", "bsh.Interpreter", str(PROGRAM), *map(str, paths)])
    decoded = [path.with_name(f"{path.name}.decoded") for path in paths]
    return [path.read_bytes() if path.exists() else path.with_suffix(".refused").read_text() for path in decoded]


def _run(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise NoDecoder(f"Trino's decoder needs {command[0]}")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoDecoder(f"Trino's decoder: {command[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
