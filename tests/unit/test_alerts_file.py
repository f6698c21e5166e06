"""The alerts file: what it holds, and what is wrong with it, by line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stockstream.alerts_file import AlertsFile, FollowedAlertsFile, parse_alerts_file, read_alerts_file
from stockstream.errors import SettingsError
from stockstream.sinks.notify.email import EmailSettings
from stockstream.sinks.notify.slack import SlackSettings

ENVIRONMENT = {"SLACK_URL": "https://hooks.slack.com/services/T0/B0/secret", "SMTP_PASSWORD": "hunter2-secret", "EMPTY": " "}
VALID = """
[groups]
tech = [
  "AAPL",
  "MSFT",
]
"other" = ["NVDA"]

[rules.volume_spike]
multiple = 8.0
[rules.big_volume]
kind = "fixed_volume"

[routes.ops]
kind = "slack"
url = "env:SLACK_URL"
severity = "critical"
rules = ["price_drop", "big_volume"]
groups = ["tech"]
symbols = ["NVDA", "AAPL"]
states = ["opened"]

[routes.mail]
kind = "email"
host = "smtp.example.com"
sender = "a@example.com"
to = ["b@example.com"]
user = "a"
password = "env:SMTP_PASSWORD"
[routes.queue]
kind = "sns"
topic = "arn:aws:sns:eu-west-1:123456789012:alerts.fifo"
[routes.all]
kind = "log"
"""


def parse(text: str) -> AlertsFile:
    return parse_alerts_file("alerts.toml", text.encode(), ENVIRONMENT)


def test_what_it_holds() -> None:
    found = parse(VALID)
    assert found.groups == {"tech": ["AAPL", "MSFT"], "other": ["NVDA"]}
    assert found.rules == {"volume_spike": {"multiple": 8.0}, "big_volume": {"kind": "fixed_volume"}}
    ops, mail = found.routes["ops"], found.routes["mail"]
    assert isinstance(ops, SlackSettings) and isinstance(mail, EmailSettings)
    assert ops.url == ENVIRONMENT["SLACK_URL"] and ops.symbols == ["NVDA", "AAPL", "MSFT"]
    assert (ops.limit, found.routes["queue"].limit, mail.limit, found.routes["all"].limit) == (30, 100, 10, 600)
    assert parse("") == AlertsFile()


def test_secrets_are_in_no_text() -> None:
    assert "secret" not in repr(parse(VALID))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[routes.a\n", 1, "no TOML"),
        ("\n\nx = \n", 3, "no TOML"),
        ('[routes.a]\nkind = "log"\n[routes.a]\nkind = "log"\n', 3, "no TOML"),
        ('x = 1\n', 1, "there is no table 'x'"),
        ('[groups]\n\n[route.a]\nkind = "log"\n', 3, "did you mean 'routes'?"),
        ('routes = 3\n', 1, "must be a table"),
        ('[groups]\ntech = "AAPL"\n', 2, "must be a list of symbols"),
        ('[groups]\ntech = [\n  "AAPL",\n  " MSFT",\n]\n', 4, "without blanks around it"),
        ('[rules]\nvolume_spike = 3\n', 2, "rules.volume_spike must be a table"),
        ('[routes.a]\nurl = "x"\n', 1, "routes.a has no kind; allowed are sns, webhook, slack, email, log"),
        ('[routes.a]\nurl = "x"\nkind = "slak"\n', 3, "did you mean 'slack'?"),
        ('[routes.a]\nkind = "webhook"\n', 1, "routes.a lacks 'url'"),
        ('[routes.a]\nkind = "webhook"\nurl = "ftp://x"\n', 3, "must be an address"),
        ('[routes.a]\nkind = "webhook"\nurl = "https://x"\nsecret = "abc"\n', 4, 'must be given as "env:NAME"'),
        ('[routes.a]\nkind = "webhook"\nurl = "env:NOTHING"\n', 3, "the environment has no variable 'NOTHING'"),
        ('[routes.a]\nkind = "webhook"\nurl = "env:EMPTY"\n', 3, "or it is empty"),
        ('[routes.a]\nkind = "webhook"\nurl = "env:SMTP_PASSWORD"\n', 3, "must be an address"),
        ('[routes.b]\nkind = "log"\n[routes.a]\nkind = "log"\nseverty = "critical"\n', 5, "did you mean 'severity'?"),
        ('[routes.a]\nkind = "log"\nseverity = "fatal"\n', 3, "allowed are warning, critical"),
        ('[routes.a]\nkind = "log"\nstates = ["open"]\n', 3, "allowed are opened, updated, closed"),
        ('[routes.a]\nkind = "log"\nmax_per_minute = "10"\n', 3, "routes.a.max_per_minute: expected `int"),
        ('[routes.a]\nkind = "log"\nmax_per_minute = -1\n', 3, "max_per_minute"),
        ('[routes.a]\nkind = "log"\nrules = ["price_dorp"]\n', 3, "did you mean 'price_drop'?"),
        ('[routes.a]\nkind = "log"\ngroups = ["tech"]\n', 3, "there is no group 'tech'"),
        ('[routes.a]\nkind = "log"\nsymbols = ["AAPL", ""]\n', 3, "symbol must have 1 to"),
        ('[routes.a]\nkind = "sns"\ntopic = "arn:aws:sqs:eu-west-1:123456789012:alerts"\n', 3, "is no ARN of an SNS topic"),
        ('[routes.a]\nkind = "sns"\ntopic = "alerts"\n', 3, "is no ARN of an SNS topic"),
        ('[routes.a]\nkind = "email"\nhost = "h"\nsender = "x"\nto = ["a@b.c"]\n', 4, "is no e-mail address"),
        ('[routes.a]\nkind = "email"\nhost = "h"\nsender = "x@y.z"\nto = [\n "a@b.c",\n "d@e.f, g@h.i"]\n', 5, "is no e-mail address"),
        ('[routes.a]\nkind = "email"\nhost = "h"\nsender = "x@y.z"\nto = []\n', 5, "routes.a.to"),
        ('[routes.a]\nkind = "email"\nhost = "h"\nsender = "x@y.z"\nto = ["a@b.c"]\nuser = "u"\n', 6, "together"),
        ('[routes.a]\nkind = "email"\nhost = "h"\nsender = "x@y.z"\nto = ["a@b.c"]\nuser = "u"\npassword = "env:SMTP_PASSWORD"\ntls = "none"\n', 8, "TLS"),
        ('[routes."a b"]\nkind = "log"\n', 1, "'a b' is no name"),
        ('routes.a.kind = "log"\nroutes.a.severity = 3\n', 2, "allowed are warning, critical"),
        ('[routes]\na = { kind = "log", severity = 3 }\n', 2, "allowed are warning, critical"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(text: str, line: int, what: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse(text)
    found = str(raised.value)
    assert found.startswith(f"alerts.toml:{line}: ") and what in found and "\n" not in found
    assert "hunter2" not in found


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(SettingsError, match=r"^alerts.toml:3: the file is not UTF-8$"):
        parse_alerts_file("alerts.toml", b"#\n#\n# \xff\n", {})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_alerts_file(str(tmp_path / "alerts.toml"))
    assert read_alerts_file("") == AlertsFile()


def write(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))


def test_a_broken_edit_keeps_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "alerts.toml"
    write(path, '[routes.a]\nkind = "log"\n')
    file = FollowedAlertsFile(str(path))
    assert list(file.current.routes) == ["a"] and not file.changed()
    write(path, '[routes.a]\nkind = "lgo"\n')
    assert file.changed() and file.fault.startswith(f"{path}:2: ") and list(file.current.routes) == ["a"]
    write(path, '[routes.a]\nkind = "lgo"\n')
    assert not file.changed()                                            # it is reported once
    write(path, '[routes.b]\nkind = "log"\n')
    assert file.changed() and not file.fault and list(file.current.routes) == ["b"]
    path.unlink()
    assert file.changed() and "cannot be read" in file.fault and list(file.current.routes) == ["b"]
    write(path, '[routes.b]\nkind = "log"\n')
    assert file.changed() and not file.fault
    assert not FollowedAlertsFile("").changed()
