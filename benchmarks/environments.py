"""Where contenders run: an environment of its own for each peer, made on demand, so that the project's own dependencies stay as they are."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from stockstream.errors import StockstreamError

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("requirements")
JAVA_PROJECT = Path(__file__).with_name("kafka_streams")


class BenchmarkError(StockstreamError):
    """A measurement that cannot be made, in one line."""


def cache() -> Path:
    """The folder that everything fetched or made for benchmarks is kept in."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stockstream" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise BenchmarkError("uv makes the peers' environments and is not there: `make setup` brings it")
    return found


def _run(order: list[str], what: str, folder: Path | None = None) -> None:
    done = subprocess.run(order, capture_output=True, text=True, check=False, cwd=folder or cache())
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise BenchmarkError(f"{what} failed: {' | '.join(lines[-3:])}")


def _fresh(folder: Path, *sources: Path) -> bool:
    """Whether `folder` was made from these files as they are; where not, it is removed."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    stamp = folder / ".stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _stamp(folder: Path, *sources: Path) -> None:
    (folder / ".stamp").write_text(hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest())


def python_of(peer: str) -> str:
    """The Python of a peer's environment, made on first use. Raises `BenchmarkError`."""
    wanted, folder = REQUIREMENTS / f"{peer}.txt", cache() / peer
    if not _fresh(folder, wanted):
        print(f"making {folder} (once)", file=sys.stderr, flush=True)
        _run([_uv(), "venv", "-q", "--python", sys.executable, str(folder)], f"making {folder}")
        _run([_uv(), "pip", "install", "-q", "--python", str(folder / "bin" / "python"), "-r", str(wanted)], f"installing {peer}")
        _stamp(folder, wanted)
    return str(folder / "bin" / "python")


def site_of(name: str) -> Path:
    """A folder with packages that stand beside our own environment: what the loop needs on top of it. Raises `BenchmarkError`."""
    wanted, folder = REQUIREMENTS / f"{name}.txt", cache() / name
    if not _fresh(folder, wanted):
        print(f"making {folder} (once)", file=sys.stderr, flush=True)
        _run([_uv(), "pip", "install", "-q", "--python", sys.executable, "--target", str(folder), "-r", str(wanted)], f"installing {name}")
        _stamp(folder, wanted)
    return folder


def confluent() -> Any:
    """The module confluent_kafka, which is not among our own dependencies. Raises `BenchmarkError`."""
    site = str(site_of("loop"))
    if site not in sys.path:
        sys.path.append(site)
    return importlib.import_module("confluent_kafka")


def java_classpath() -> str:
    """The classpath of the Kafka Streams contender, fetched by Maven and compiled on first use. Raises `BenchmarkError`."""
    pom, source = JAVA_PROJECT / "pom.xml", JAVA_PROJECT / "src/main/java/stockstream/Rolling.java"
    folder = cache() / "kafka_streams"
    if not _fresh(folder, pom, source):
        maven, javac = shutil.which("mvn"), shutil.which("javac")
        if maven is None or javac is None:
            raise BenchmarkError("Kafka Streams needs mvn and javac (Debian: maven, openjdk-17-jdk-headless)")
        print(f"making {folder} (once)", file=sys.stderr, flush=True)
        _run([maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={folder / 'jars'}"], "fetching Kafka Streams")
        _run([javac, "-d", str(folder / "classes"), "-cp", f"{folder / 'jars'}/*", str(source)], "compiling the Kafka Streams contender")
        _stamp(folder, pom, source)
    return f"{folder / 'classes'}:{folder / 'jars'}/*"
