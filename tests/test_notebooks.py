"""Every notebook runs from its first cell to its last, opens on Colab, and is stored with what it shows."""

import json
from pathlib import Path

import pytest

from tests import notebooks

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.mark.slow
@each_notebook
def test_runs(path, phantom_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    monkeypatch.chdir(tmp_path)
    stored = json.loads(path.read_text())["cells"]
    for cell, before in zip(notebooks.run(path)["cells"], stored, strict=True):
        shown, then = ([kind(output) for output in part.get("outputs", ())] for part in (cell, before))
        assert shown == then, f"store the outputs anew: python -m tests.notebooks {path}"


def kind(output):
    return sorted(output["data"]) if "data" in output else output["name"]


@each_notebook
def test_is_stored_as_readers_need_it(path):
    """With its pictures, small, with the badge, and with an installation that Colab needs and others pass over."""
    head, install, *cells = json.loads(path.read_text())["cells"]
    assert head["source"][0].startswith("# ") and "colab-badge.svg" in head["source"][-1]
    assert 'find_spec("cxrjax") is None' in "".join(install["source"]) and "%pip install" in install["source"][-1]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code), f"python -m tests.notebooks {path} stores what it shows"
    assert any(cell["outputs"] for cell in code)
    assert path.stat().st_size < 300_000
    text = path.read_text()
    assert "Traceback" not in text and "/home/" not in text


def test_cells_are_run_as_jupyter_runs_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = [
        "%%writefile one.py\nNUMBER = 3\n",
        "if False:\n    %pip install nothing\nimport one\nprint('said')\none.NUMBER",
        "!echo three && false || true\n",
        "from PIL import Image\n\nImage.new('L', (2, 2))",
    ]
    cells = [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in sources]
    file = tmp_path / "a.ipynb"
    file.write_text(json.dumps({"cells": cells}))
    ran = [cell["outputs"] for cell in notebooks.run(file)["cells"]]
    assert ran[1][0]["text"] == ["said\n"] and ran[1][1]["data"] == {"text/plain": ["3"]}
    assert ran[2][0]["text"] == ["three\n"] and list(ran[3][0]["data"]) == ["image/png", "text/plain"]
    cells[2]["source"] = ["!false"]
    file.write_text(json.dumps({"cells": cells}))
    with pytest.raises(RuntimeError, match="false ended with 1"):
        notebooks.run(file)
