"""The examples of docs/research.md and the notebook run, on a recorded archive."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recorded_markets import Recorded, record

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "research.md"
NOTEBOOK = ROOT / "docs" / "notebooks" / "archive.ipynb"
RUN = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("recorded") / "archive", 900)


@pytest.mark.slow
def test_the_examples_of_the_page_run(recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("STOCKSTREAM_ARCHIVE", str(recorded.root))
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 8
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/research.md", "exec"), names)
    assert "6 symbols" in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs(recorded: Recorded, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name.lower()) for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")}
    environment = os.environ | folders | {"STOCKSTREAM_ARCHIVE": str(recorded.root), "PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-c", RUN, str(NOTEBOOK), str(tmp_path / "ran.ipynb")]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-4_000:]
    cells = [cell for cell in json.loads((tmp_path / "ran.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "stream" and output["name"] == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_the_notebook_is_committed_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
