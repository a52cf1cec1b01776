"""The page on leaving: its blocks run as they stand, and a folder is loaded as its users load it."""

import json
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrjax import export
from cxrjax.interop import onnx_file
from cxrjax.text import tokenizer
from tests import runs

PAGE = Path(__file__).parents[1] / "docs" / "leave.md"


def blocks(word=""):
    """The Python blocks of the page with this word after the language."""
    return re.findall(rf"^```python{f' {word}' if word else ''}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """encoder/ and picture.png."""
    place = tmp_path_factory.mktemp("leave")
    runs.write(place / "run", runs.config("supervised", labels="Effusion,Nodule"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "can_compare", lambda: False)  # other tests do
        export.export(place / "run", place / "encoder")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(place / "picture.png")
    return place


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("somebody asked the network")

    monkeypatch.setattr(socket, "socket", refuse)


def test_ten_lines_of_every_form(folder, monkeypatch):
    """Blocks share their names, as a reader's session does."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(folder)
    names, found = {}, blocks()
    assert len(found) == 4
    for code in found[:2]:
        exec(code, names)
    assert names["features"].shape == (1, 64) and set(names["answers"]) == {"Effusion", "Nodule"}
    in_torch = names["features"]
    names["picture"] = np.array(Image.open("picture.png"))[None, :, :, None]
    for code in found[2:]:  # plain JAX and NNX, on the same picture
        exec(code.replace("np.zeros((2, run.method.image_px, run.method.image_px, 1), np.uint8)", "picture"), names)
        np.testing.assert_allclose(names["features"], in_torch, atol=1e-4)
        names.pop("features")


@pytest.mark.slow
def test_ten_lines_of_the_joint_space(folder, monkeypatch):
    pytest.importorskip("transformers")
    runs.write(folder / "sista", runs.config("sista"))
    tokenizer.save(tokenizer.train(["No pleural effusion.", "Left pleural effusion."] * 2), folder / "sista")
    export.export(folder / "sista", folder / "joint")
    monkeypatch.chdir(folder)
    names = {}
    exec(blocks()[0] + blocks("joint")[0], names)
    assert names["logits"].shape == (1, 2) and names["maps"].shape[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("method", "word"), [("segment", "masks"), ("detect", "boxes"), ("mlvicx", "gates")])
def test_ten_lines_of_a_head(method, word, folder, monkeypatch):
    pytest.importorskip("transformers")
    runs.write(folder / f"{word} run", runs.config(method))
    export.export(folder / f"{word} run", folder / word)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "modeling", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = {}
    exec(blocks()[0] + blocks(word)[0], names)
    monkeypatch.delitem(sys.modules, "modeling")
    if word == "masks":
        assert names["inside"].shape == (1, 32, 32)
    elif word == "boxes":
        assert len(names["names"]) == len(names["found"]["boxes"]) > 0
    else:
        assert names["features"].shape[1] == names["patches"].shape[3]


@pytest.mark.slow
def test_ten_lines_of_onnx(folder, monkeypatch):
    for package in ("transformers", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    export.export(folder / "run", folder / "encoder", overwrite=True, form="onnx")
    monkeypatch.chdir(folder)
    names = {}
    exec(blocks()[0] + blocks("onnx")[0], names)
    np.testing.assert_allclose(names["found"]["pooled"], names["features"], atol=1e-4)
    assert names["found"]["logits"].shape == (1, 2) and names["found"]["patches"].shape == (1, 8, 8, 64)
    assert "`model.onnx` is the same for ONNX" in (folder / "encoder" / "README.md").read_text()


def test_onnx_names_the_packages_that_are_missing(folder, monkeypatch):
    monkeypatch.setattr(onnx_file, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(ValueError, match=r"needs no_such_package; install them with pip install 'cxrjax\[onnx\]'"):
        onnx_file.write(folder / "encoder", "cls")


def test_check_says_what_a_folder_is(folder, offline, capsys):
    pytest.importorskip("transformers")
    assert export.main(["--check", str(folder / "encoder")]) == 0
    said = capsys.readouterr().out
    for part in ("A ViT (test) for transformers", "pictures of 32 px", "2 answers: Effusion, Nodule.", "pooled 64"):
        assert part in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"auto_map": {"AutoModel": "theirs.Model"}}, "asks for code of its own"), ({"hidden_size": 65}, "none of ours")],
)
def test_check_refuses_in_one_sentence(folder, change, sentence, tmp_path, capsys):
    for file in (folder / "encoder").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert export.main(["--check", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    assert export.main(["--check", str(tmp_path)]) == 2
    assert "no model.safetensors" in capsys.readouterr().err
