"""Runs the notebooks as Jupyter would, without Jupyter, and stores what their cells show.

    python -m tests.notebooks notebooks/own_method.ipynb    runs it in an empty folder and writes its outputs into it

A line that begins with `!` is a command, one that begins with `%pip` is passed over, and `%%writefile` writes a file.
The value of the last line of a cell is shown: pictures as PNG, tables as HTML, all else as text.
"""

import ast
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
from PIL import Image


def run(path: Path) -> dict[str, Any]:
    """The notebook with the outputs of its cells, run in the current folder. Raises what a cell or command raises."""
    notebook = json.loads(path.read_text())
    sys.path.insert(0, os.getcwd())
    namespace: dict[str, Any] = {"__name__": "__main__", "_command": _command}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    try:
        for number, cell in enumerate(cells, 1):
            cell["execution_count"] = number
            cell["outputs"] = _outputs("".join(cell["source"]), f"{path.name}[{number}]", namespace, number)
    finally:
        sys.path.pop(0)
    return notebook


def _outputs(source: str, name: str, namespace: dict[str, Any], number: int) -> list[dict[str, Any]]:
    if source.startswith("%%writefile "):
        file, _, text = source.removeprefix("%%writefile ").partition("\n")
        Path(file).write_text(text)
        return [{"name": "stdout", "output_type": "stream", "text": [f"Writing {file}\n"]}]
    lines = source.replace("\\\n", " ").splitlines()  # a command may go on behind a backslash
    tree = ast.parse("\n".join(map(_plain, lines)))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace) if last else None
    outputs = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if value is not None:
        result = {"data": _shown(value), "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        outputs.append(result)
    return outputs


def _plain(line: str) -> str:
    """A line of a cell as Python: commands are called, and installing is passed over."""
    indent, rest = re.fullmatch(r"(\s*)(.*)", line).groups()
    if rest.startswith("!"):
        return f"{indent}_command({rest[1:]!r})"
    return f"{indent}pass" if rest.startswith("%pip") else line


def _command(line: str) -> None:
    line = re.sub(r"^cxrjax\b", f"{sys.executable} -m cxrjax", line)
    here = str(Path(__file__).parents[1])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError(f"{line} ended with {done.returncode}: {done.stderr[-2000:]}")


def _shown(value: Any) -> dict[str, Any]:
    if isinstance(value, Image.Image):
        encoded = io.BytesIO()
        value.save(encoded, "PNG", optimize=True)
        return {"image/png": base64.b64encode(encoded.getvalue()).decode(), "text/plain": [repr(value)[:40] + " …>"]}
    if isinstance(value, pandas.DataFrame):
        return {"text/html": [value.to_html()], "text/plain": [str(value)]}
    return {"text/plain": repr(value).splitlines(keepends=True)}


def main(paths: Sequence[str]) -> None:
    for path in map(Path.absolute, map(Path, paths)):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            notebook = run(path)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
