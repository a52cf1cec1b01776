"""Blocks of the documents that are not run: their code has names and arguments that exist, and so do their settings.

What a block's info string says: `sh run` and `python file=NAME` are run by test_readme.py, `installed` by
test_package.py, other words by test_leave.py. All others are only read, here and in test_readme.py.
"""

import ast
import importlib
import inspect
import re
import shlex
import typing
from pathlib import Path

import pytest

import cxrjax
from tests import test_readme as documents
from tests.test_readme import PAGES

OF_LEAVE = "joint|timm|onnx|masks|boxes|gates"
INFO = re.compile(rf"|sh|sh (run|tests|installed)|python|python (file=\w+\.py|installed|{OF_LEAVE})|text|csv|json")


class Names:
    """What the names of a block are: follows imports of ours, attributes, and calls whose result is annotated."""

    def __init__(self):
        self.known: dict[str, object] = {"cxrjax": cxrjax}

    def check(self, code: str) -> None:
        for statement in ast.parse(code).body:
            self._import(statement)
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    self._call(node)
                elif isinstance(node, ast.Attribute):
                    self.what(node)
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self.known[statement.targets[0].id] = self.what(statement.value)

    def what(self, node: ast.AST) -> object:
        """The object or class that an expression is; None where it is not ours, or nobody says."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.what(node.value)
            if owner is None or not getattr(owner, "__module__", getattr(owner, "__name__", "")).startswith("cxrjax"):
                return None
            if inspect.isclass(owner) and node.attr in typing.get_type_hints(owner):
                return None
            assert hasattr(owner, node.attr), f"{ast.unparse(node)}: there is no {node.attr!r}"
            return getattr(owner, node.attr)
        if isinstance(node, ast.Call):
            called = self.what(node.func)
            if called is None or inspect.isclass(called):
                return called
            result = typing.get_type_hints(called).get("return")
            return result if inspect.isclass(result) else None
        return None

    def _import(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cxrjax"):
            module = importlib.import_module(node.module)
            for name in node.names:
                found = getattr(module, name.name, None) or importlib.import_module(f"{node.module}.{name.name}")
                self.known[name.asname or name.name] = found

    def _call(self, node: ast.Call) -> None:
        called = self.what(node.func)
        if not callable(called):
            return
        positional = [ast.unparse(argument) for argument in node.args]
        if (
            inspect.isfunction(called)
            and isinstance(node.func, ast.Attribute)
            and inspect.isclass(self.what(node.func.value))
        ):
            positional = ["self", *positional]
        named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        try:
            inspect.signature(called).bind_partial(*positional, **named)
        except TypeError as error:
            raise AssertionError(f"{ast.unparse(node)}: {error}") from None


def code(page: Path) -> list[str]:
    """The Python blocks of a page as one text each; those that are not written to files follow each other."""
    blocks = documents.blocks(page.read_text())
    alone = [body for info, body in blocks if info.startswith("python file=")]
    return [*alone, "\n".join(body for info, body in blocks if re.match(r"python(?! file=)", info))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_say_what_is_done_with_them(page):
    for info, _ in documents.blocks(page.read_text()):
        assert INFO.fullmatch(info), f"{page.name}: no test knows what to do with a block {info!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_has_names_and_arguments_that_exist(page):
    for each in code(page):
        Names().check(each)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("import cxrjax\ncxrjax.lode('runs/x')", "lode"),
        ("cxrjax.load('runs/x', stepp=3)", "stepp"),
        ("mine = cxrjax.load('runs/x')\nmine.embedd(images)", "embedd"),
        ("mine = cxrjax.pretrain('spcl')\nmine.embed(images, patchs=True)", "patchs"),
        ("from cxrjax.methods.base import Auxx", "Auxx"),
        ("from cxrjax.methods import base\nbase.Method(view=1)", "view"),
    ],
)
def test_a_wrong_name_is_noticed(wrong, said):
    with pytest.raises((AssertionError, ImportError), match=said):
        Names().check(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_prose_exist(page):
    for words in map(shlex.split, (text for text in documents.inline(page.read_text()) if text.startswith("cxrjax "))):
        if len(words) > 1 and words[1] not in ("--help", "completion"):
            assert words[1] in documents.__main__.COMMANDS, shlex.join(words)
