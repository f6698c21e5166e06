"""The batch path as a job of AWS Glue 5: `stockstream etl` with the arguments of a job.

The job is of the type Spark with Python 3.11, whose driver runs this script; Spark itself is not used. `--additional-python-modules` names our wheel in S3.
docs/etl.md has the steps.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime, timedelta

from stockstream.cli import run


def arguments(given: list[str]) -> list[str]:
    """The arguments of `stockstream etl`. Glue adds some of its own (`--JOB_NAME` and others), which are passed over.

    `--setting "NAME=VALUE;NAME=VALUE"` sets STOCKSTREAM_NAME, because a job has no environment of its own. Without `--date` it is yesterday in UTC.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="glue_job.py")
    parser.add_argument("--from", dest="source", required=True)
    parser.add_argument("--to", dest="target", required=True)
    parser.add_argument("--date", default=f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}")
    parser.add_argument("--to-date", "--to_date")
    parser.add_argument("--history", default="1")
    parser.add_argument("--setting", default="")
    parser.add_argument("--JOB_NAME", default="")
    known, _ = parser.parse_known_args(given)
    for part in filter(None, known.setting.split(";")):
        name, _, value = part.partition("=")
        os.environ[f"STOCKSTREAM_{name.strip().upper()}"] = value.strip()
    if known.JOB_NAME:
        print(f"glue job {known.JOB_NAME}: {known.source} to {known.target}, {known.date}", flush=True)
    out = ["etl", "--from", known.source, "--to", known.target, "--date", known.date, "--history", known.history]
    return [*out, "--to-date", known.to_date] if known.to_date else out


def main() -> None:
    status = run(arguments(sys.argv[1:]))
    if status:
        raise SystemExit(status)                                         # Glue takes any SystemExit but a plain end for a failure


if __name__ == "__main__":
    main()
