"""docs/http.md names every view, event and metric."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from stockstream.metrics import Metrics
from stockstream.web.views import OPERATIONS

DOCS = (Path(__file__).parents[3] / "docs" / "http.md").read_text()


def test_every_view_and_parameter_is_documented() -> None:
    for operation in OPERATIONS:
        lines = [line for line in DOCS.splitlines() if line.startswith("| `") and line.split("`")[1].split("?")[0] == operation.path]
        assert len(lines) == 1, operation.path
        assert all(f"{p.name}=" in lines[0] for p in operation.parameters if p.place == "query"), operation.path


def test_every_metric_of_ours_is_documented() -> None:
    for family in text_string_to_metric_families(Metrics().exposition().decode()):
        if family.name.startswith("stockstream_") and not family.name.endswith("_created"):
            assert family.name.removeprefix("stockstream_") in DOCS, family.name
