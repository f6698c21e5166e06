"""`stockstream`: the commands, each imported only when it is used."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click

from stockstream.endings import DO_NOT_RESTART, INTERRUPTED
from stockstream.errors import StockstreamError
from stockstream.packages import require_own_packages, require_tried_versions
from stockstream.wording import one_line

COMMANDS = {
    "demo": "Run everything on this machine: a broker, a simulated market, the worker and its web.",
    "worker": "Run a worker, and restart it when it fails.",
    "watch": "Add symbols to the watchlist, remove and list them.",
    "sources": "Show the market-data sources: state, symbols, budgets, last error.",
    "replay": "Publish recorded trades or bars to ticks.raw.",
    "bridge": "Bring a topic of foreign JSON into ticks.raw.",
    "backfill": "Fetch one-minute bars of the past from Alpha Vantage, for replay.",
    "backtest": "Run a recording through the whole pipeline without a broker.",
    "etl": "Process the raw records of some dates in a batch.",
    "alerts": "Check the alerts file, test a route, list what was not delivered.",
    "train": "Train a model and store it.",
    "query": "Query the archive in SQL.",
    "athena": "Tables and views of the archive for Amazon Athena.",
    "compact": "Compact the archive: one sorted object instead of many small ones.",
    "archive": "Show what the archive consists of, and decide how long it is kept.",
    "verify": "Check that the archive holds every raw offset exactly once.",
}
"""The commands of `stockstream --help`, in the order in which a newcomer uses them. The texts stand here because importing the modules is slow."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the system where no more can be written: by a command to its standard output, for example."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"stockstream.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        try:
            click.echo(f"stockstream {version('stockstream')}")
        except PackageNotFoundError:
            click.echo("stockstream, not installed: run from its source")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version and end.")
def group() -> None:
    """Live stock analytics on Kafka: rolling windows, alerts and predictions from every tick.

    Every command takes its settings from STOCKSTREAM_* in the environment; docs/settings.md lists them.
    """


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code.

    0; 1 after an error, printed in one line (78 if restarting `worker` cannot help); 2 for a wrong option; 130 after Ctrl-C; or the command's own code.
    """
    try:
        require_own_packages()
        require_tried_versions()
        result = group.main(args=list(arguments), prog_name="stockstream", standalone_mode=False)
    except StockstreamError as error:
        click.echo(f"stockstream: {one_line(error)}", err=True)
        return DO_NOT_RESTART if arguments[:1] == ["worker"] and not error.retriable else 1
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f" {error.filename}" if error.filename else ""
        click.echo(f"stockstream: cannot write{where}: {error.strerror}", err=True)
        return 1
    return result if isinstance(result, int) else 0


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
