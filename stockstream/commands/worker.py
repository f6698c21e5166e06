"""`stockstream worker`: a Faust worker as a child process, restarted when it fails."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import click

from stockstream.locations import in_url
from stockstream.settings import load_settings
from stockstream.supervisor import Supervisor


def worker_command(host: str, port: int, loglevel: str, *, web: bool) -> list[str]:
    """The command line of one Faust worker on this Python."""
    command = [sys.executable, "-m", "faust", "-A", "stockstream", "worker", "-l", loglevel]
    return [*command, "--web-host", in_url(host), "--web-bind", host, "--web-port", str(port)] if web else [*command, "--without-web"]


def _report(text: str) -> None:
    with contextlib.suppress(OSError):                                   # the reader of the stream may be gone
        click.echo(f"stockstream: {text}", err=True)


@click.command()
@click.option("--supervise/--once", default=True, show_default=True, help="Restart the worker when it fails, or run it once.")
@click.option("--web-port", type=click.IntRange(1, 65_535), help="Port of the views.  [default: STOCKSTREAM_WEB_PORT]")
@click.option("--web-host", help="Address that the views bind to.  [default: STOCKSTREAM_WEB_HOST]")
@click.option("--without-web", is_flag=True, help="Serve no views, and read no topics for them.")
@click.option("-l", "--loglevel", type=click.Choice(["crit", "error", "warn", "info", "debug"]), default="info", show_default=True, help="Level.")
def command(supervise: bool, web_port: int | None, web_host: str | None, without_web: bool, loglevel: str) -> int:
    """Run a worker, and restart it when it fails.

    This runs `faust -A stockstream worker` as a child process. If the worker fences itself or crashes, it is restarted after 1, 2, 4, 8 and then every
    10 seconds. If it ends for the same reason three times in a row, it is restarted after 60 and then every 300 seconds. SIGTERM and Ctrl-C
    stop it, and the exit code is the worker's.
    """
    changes = {"web_host": web_host} if web_host is not None else {}
    settings = load_settings(**changes)
    line = worker_command(settings.web_host, web_port or settings.web_port, loglevel, web=not without_web)
    with tempfile.TemporaryDirectory(prefix="stockstream-", ignore_cleanup_errors=True) as folder:
        reason_file = Path(folder) / f"reason-{os.getpid()}"
        environment = {"STOCKSTREAM_REASON_FILE": str(reason_file)}
        return Supervisor(line, _report, environment=environment, reason_file=reason_file).run(restart=supervise)
