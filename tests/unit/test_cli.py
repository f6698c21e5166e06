from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest

from stockstream import cli
from stockstream.errors import BrokerError, StockstreamError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Puts a function in the place of `stockstream query`."""

    def install(function: Callable[[], object]) -> None:
        module = ModuleType("stockstream.commands.query")
        module.command = click.command()(function)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "stockstream.commands.query", module)

    return install


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    reported = capsys.readouterr().out
    assert all(f"  {name} " in reported for name in cli.COMMANDS)


def test_help_and_version_load_no_command() -> None:
    asked = "import sys; from stockstream import cli; cli.run(['--help']); cli.run(['--version'])"
    code = f"{asked}; print([name for name in sys.modules if name.startswith('stockstream.commands.')])"
    reported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert reported.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    reported = capsys.readouterr().out
    assert reported.startswith(f"Usage: stockstream {name}")
    assert len(reported.splitlines()) > 4


def test_an_error_is_one_line_and_status_1(command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise BrokerError("no broker answers\nat all")

    command(fail)
    assert cli.run(["query"]) == 1
    reported = capsys.readouterr()
    assert (reported.out, reported.err) == ("", "stockstream: no broker answers at all\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_behind_stdout_is_one_line_and_status_1() -> None:
    with open("/dev/full", "w") as full:                                 # noqa: PTH123  a device
        ended = subprocess.run([sys.executable, "-m", "stockstream.cli", "query", "--tables"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "stockstream: cannot write: No space left on device\n")


def test_a_fault_of_ours_is_not_hidden(command: Callable[[Callable[[], object]], None]) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    command(fail)
    with pytest.raises(ZeroDivisionError):
        cli.run(["query"])


def test_ctrl_c_is_status_130_and_quiet(command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    command(interrupted)
    assert cli.run(["query"]) == 130
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (3, 3), ("text", 0)])
def test_a_number_that_a_command_returns_is_its_status(command: Callable[[Callable[[], object]], None], result: object, status: int) -> None:
    command(lambda: result)
    assert cli.run(["query"]) == status


@pytest.mark.parametrize("arguments", [["nosuch"], ["--nosuch"], ["worker", "--web-port", "0"], ["worker", "--web-port", "x"], ["worker", "-l", "loud"]])
def test_a_wrong_option_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_another_package_of_our_names_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise StockstreamError("the package 'tables' is not ours")

    monkeypatch.setattr(cli, "require_own_packages", refuse)
    assert cli.run(["--version"]) == 1
    assert capsys.readouterr().err == "stockstream: the package 'tables' is not ours\n"


def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("STOCKSTREAM_BROKER", "somewhere")
    assert cli.run(["worker"]) == 78
    reported = capsys.readouterr().err
    assert reported.startswith("stockstream: STOCKSTREAM_BROKER: 'somewhere' is not kafka://host:port")
    assert reported.count("\n") == 1


def test_a_worker_that_need_not_be_tried_again_ends_with_78(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("STOCKSTREAM_WEB_HOST", "")
    assert cli.run(["worker"]) == 78
    assert capsys.readouterr().err.splitlines() == ["stockstream: STOCKSTREAM_WEB_HOST: '' is neither an address nor a host name"]
