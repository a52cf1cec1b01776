"""Every setting of a config with its value and the comment that stands beside it where it is set.

Comments are read from the config's file, and from the functions that it calls for a part of the config.
"""

import ast
import importlib.util
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from cxrjax.config import ConfigDict, flat


def listing(config: ConfigDict, file: Path) -> str:
    """One line a setting: `optim.lr = 0.001  # comment`; the comment of a whole section stands above it."""
    said, lines, seen = comments(file), [], set()
    settings = flat(config.to_dict())
    width = min(max((len(f"{key} = {value!r}") for key, value in settings.items()), default=0), 40)
    for key, value in settings.items():
        parts = key.split(".")
        for section in (".".join(parts[:end]) for end in range(1, len(parts))):
            if section in said and section not in seen:
                lines.append(f"# {section}: {said[section]}")
            seen.add(section)
        comment = f"  # {said[key]}" if key in said else ""
        lines.append(f"{f'{key} = {value!r}':<{width}}{comment}".rstrip())
    return "\n".join(lines)


def comments(file: Path, function: str = "") -> dict[str, str]:
    """{"optim.lr": "comment"} of the settings that a file of Python makes, or one function of it."""
    text = file.read_text()
    tree = ast.parse(text)
    beside, above = _comments_by_line(text)
    body: ast.AST = tree
    if function:
        body = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    found: dict[str, str] = {}
    for prefix, value in _settings(body):
        for section, called in _calls(prefix, value):
            elsewhere = _source(file, tree, called.func)
            if elsewhere is not None:
                found |= {_join(section, key): said for key, said in comments(*elsewhere).items()}
        for key, line, last in _entries(prefix, value):
            said = beside.pop(last, "") or above.pop(line, "") if key else ""
            if said:
                found[key] = said
    return found


def _settings(body: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(dotted key, what it is set to) of `config.a.b = …`, `config.a.update(…)`, `config = …` and `return …`."""
    for node in _unconditional(body):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and (key := _key(node.targets[0])) is not None:
            yield key, node.value
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Dict | ast.Call):
            yield "", node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
            key = _key(node.func.value)
            if key and node.args:
                yield key, node.args[0]


def _unconditional(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is below it, but for what only some words after the colon reach."""
    yield node
    for inner in ast.iter_child_nodes(node):
        if not isinstance(inner, ast.If):
            yield from _unconditional(inner)


def _entries(prefix: str, value: ast.expr) -> Iterator[tuple[str, int, int]]:
    """(dotted key, first line, last line) of a value and of all entries where it is a dictionary.

    A section comes after its entries, since a comment at the end of its line is of the last of these.
    """
    if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.Dict):  # ConfigDict({…})
        value = value.args[0]
    if isinstance(value, ast.Dict):
        for name, inner in zip(value.keys, value.values, strict=True):
            if isinstance(name, ast.Constant):
                for key, line, last in _entries(_join(prefix, str(name.value)), inner):
                    yield key, min(line, name.lineno), last
    yield prefix, value.lineno, value.end_lineno or value.lineno


def _calls(prefix: str, value: ast.expr) -> Iterator[tuple[str, ast.Call]]:
    """(dotted key, call) of a value and of all that it spreads or holds, as in `{**recipes.vit(), "head": head()}`."""
    if isinstance(value, ast.Call):
        yield prefix, value
    elif isinstance(value, ast.Dict):
        for name, inner in zip(value.keys, value.values, strict=True):
            if name is None:
                yield from _calls(prefix, inner)
            elif isinstance(name, ast.Constant):
                yield from _calls(_join(prefix, str(name.value)), inner)


def _key(node: ast.expr) -> str | None:
    """ "a.b" of `config.a.b`, "" of `config`, None of anything else."""
    if isinstance(node, ast.Name):
        return "" if node.id == "config" else None
    if isinstance(node, ast.Attribute):
        outer = _key(node.value)
        return None if outer is None else _join(outer, node.attr)
    return None


def _join(prefix: str, key: str) -> str:
    return ".".join(part for part in (prefix, key) if part)


def _source(file: Path, tree: ast.Module, called: ast.expr) -> tuple[Path, str] | None:
    """File and name of a function of ours that is called, of another module as `module.function`."""
    if isinstance(called, ast.Name):
        own = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        return (file, called.id) if called.id in own else None
    if not (isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name)):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cxrjax"):
            for alias in node.names:
                if (alias.asname or alias.name) == called.value.id:
                    spec = importlib.util.find_spec(f"{node.module}.{alias.name}")
                    return (Path(spec.origin), called.attr) if spec and spec.origin else None
    return None


def _comments_by_line(text: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments beside code by its line, and comments that have lines of their own by the line below them."""
    beside, above, block = {}, {}, []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            said = token.string.lstrip("# ")
            if token.line.strip().startswith("#"):
                block.append(said)
                above[token.start[0] + 1] = " ".join(block)
            else:
                beside[token.start[0]] = said
        elif token.type not in (tokenize.NL, tokenize.NEWLINE):
            block = []
    return beside, above
