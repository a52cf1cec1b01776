"""What the site has beside the pages of this folder: a page for each method, set and room of the code, made from it.

MkDocs calls the `on_` functions (`hooks` in mkdocs.yml), mkdocstrings `Docstrings`. The pages are made while the site
is built and lie nowhere else, so that they cannot differ from the code.
"""

import ast
import importlib
import re
import textwrap
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cxrjax import keys, methods, named
from cxrjax.datasets import catalogue
from cxrjax.input import overlap

ROOT = Path(__file__).parents[1]
SECTIONS = {"methods": "Methods", "sets": "Data", "api": "API", "add": "Add your own", "records": "Records"}
"""The section of the navigation that a folder of pages belongs to."""

RECORDS = {
    "2026-11-30-cost": "Giga multiply–accumulates a picture, forward / training step",
    "2026-11-22-image-methods-phantoms": "AUROC on phantoms of a linear probe and k-NN, before and after training",
    "2026-11-22-report-methods-phantoms": "On phantoms, with the default config",
    "2026-11-22-five-methods-real-pictures": "AUROC on real pictures, and what was gained on the untrained encoder",
    "2026-11-22-frontal-lateral-defects": "What each defect of the released code costs, on simulated studies",
}
"""Records whose tables have rows of methods, and what their numbers are."""

RUN_BY_NONE = ("__init__", "__main__")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages that are made, and those of folders with a section of their own, to the navigation."""
    sections = {title: pages for entry in config.nav or [] if isinstance(entry, dict) for title, pages in entry.items()}
    written = {f"{path.parent.name}/{path.name}": path.read_text() for path in sorted((ROOT / "docs").glob("*/*.md"))}
    for path, text in (made() | written).items():
        pages = sections[SECTIONS[path.partition("/")[0]]]
        if path not in pages:
            pages.append({text.partition("\n")[0].removeprefix("# "): path})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in made().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Blocks say what a test does with them: `sh run` becomes sh, and `python file=mine.py` a block with that title.

    The sets of data.md are links to their pages.
    """
    markdown = re.sub(r"^```(\w+) (?:run|tests|installed)$", r"```\1", markdown, flags=re.MULTILINE)
    markdown = re.sub(r"^```(\w+) file=(\S+)$", r'```\1 title="\2"', markdown, flags=re.MULTILINE)
    if page.file.src_uri == "data.md":
        markdown = re.sub(r"^\| `.*?(?= \|)", with_pages, markdown, flags=re.MULTILINE)
    return markdown


def with_pages(cell: re.Match) -> str:
    """The names of sets in the first cell of a row, as links to their pages, which are not there on GitHub."""
    return re.sub(
        r"`(\w+)`", lambda name: f"[{name[0]}](sets/{name[1]}.md)" if name[1] in catalogue.SETS else name[0], cell[0]
    )


class Docstrings(griffe.Extension):
    """Docstrings as Markdown, for mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **others) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


@cache
def made() -> dict[str, str]:
    """{path in the site: text} of all pages that are made."""
    return {
        **{f"methods/{name}.md": of_method(name) for name in methods.available()},
        **{f"sets/{name}.md": of_set(name) for name in catalogue.SETS},
        **{f"api/{room}.md": text for room, text in rooms().items()},
    }


def of_method(name: str) -> str:
    """What the method's file and its config say at their top, what it costs, and every setting."""
    file = named.available()[name]
    title, _, rest = docstring(ROOT / f"cxrjax/methods/{name}.py").partition("\n")
    method, *paper = re.split(r"[:.] ", title, maxsplit=1)
    config = named.load(file).get_config("")
    return "\n\n".join(
        [
            f"# {method}",
            *(text[:1].upper() + text[1:] for text in paper),
            *seen(name, method),
            as_markdown(rest.strip("\n")),
            "## Its config",
            f"`configs/{name}.py`, or `cxrjax train {name}`.",
            as_markdown(docstring(file)),
            *measured(name, method),
            "## Settings",
            f"```text\n{keys.listing(config, file)}\n```",
        ]
    )


def seen(name: str, method: str) -> list[str]:
    """The picture of what a method is given, where there is one; its parts are named in methods.md."""
    there = (ROOT / f"docs/images/sees/{name}.webp").exists()
    text = f"What {method} is given of one phantom"
    return (
        [f"![{text}](../images/sees/{name}.webp)", f"*{text} ([parts](../methods.md#what-each-method-sees)).*"]
        if there
        else []
    )


def measured(name: str, method: str) -> list[str]:
    """What the records have on a method: the rows that begin with its name, and all rows of its own record."""
    parts = []
    for record, said in RECORDS.items():
        text = (ROOT / f"docs/records/{record}.md").read_text()
        head, rule, *rows = re.search(r"(^\|.*\n)+", text, re.MULTILINE)[0].splitlines()  # its first table
        cells = {row: re.split(r", (?=[a-zρ\d])| \(", row.split("|")[1].strip())[0].casefold() for row in rows}
        own = [row for row in rows if any(is_of(method.casefold(), one) for one in cells[row].split(", "))]
        found = rows if name.replace("_", "-") in record else own
        if found:
            parts += [f"{said} ([record](../records/{record}.md)):", "\n".join([head, rule, *found])]
    return ["## Measured", *parts] if parts else []


def is_of(title: str, name: str) -> bool:
    """Whether a row is of a method: "spcxr" of "spcxr (later ss-cxr)", but "dino" not of "dinov2"."""
    return any(
        re.match(rf"{re.escape(short)}(?!\w)", whole) for short, whole in ((name, title), (title.split()[0], name))
    )


def of_set(name: str) -> str:
    """What a set is, where it is had, how it is converted, and what its publisher counts."""
    entry, file = catalogue.SETS[name], ROOT / f"cxrjax/datasets/{name}.py"
    lead, _, rest = docstring(file).partition("\n")
    published = getattr(importlib.import_module(f"cxrjax.datasets.{name}"), "PUBLISHED", {}) if file.exists() else {}
    options = [f"* `--{option}`: {', '.join(choices)}" for option, choices in entry.options.items()]
    counts = [f"| {what} | {count:,} |" for what, count in published.items() if isinstance(count, int)]
    told = ["## What its publisher counts", "\n".join(["| what | count |", "|---|---:|", *counts])] if counts else []
    return "\n\n".join(
        [
            f"# {name}",
            lead or entry.title,
            f"* Size: {entry.size}\n* Licence: {entry.licence}\n* Access: {entry.access}",
            f"Where: {linked(entry.where)}.",
            f"```sh\npython -m cxrjax.prepare {name} --raw DIR\n```",
            *(["\n".join(["Choices, the first is the default:\n", *options])] if options else []),
            re.sub(r"^(Source|Layout|Ours):", r"\n**\1.**", linked(as_markdown(rest.strip("\n"))), flags=re.MULTILINE),
            *told,
            *overlaps(name),
        ]
    )


def overlaps(name: str) -> list[str]:
    """Which other sets hold pictures of this one."""
    others = sorted(set().union(*(group for group in overlap.KNOWN if name in group)) - {name})
    text = "Shares pictures, as is known, with {}. Test pictures of one are kept out of [training]({}) on another."
    page = "../data.md#no-test-picture-in-training"
    return ["## Known overlaps", text.format(", ".join(f"`{other}`" for other in others), page)] if others else []


def rooms() -> dict[str, str]:
    """A page for `cxrjax` itself, one for each folder of the code, and one for the files beside the folders."""
    code = ROOT / "cxrjax"
    beside = [f"cxrjax.{file.stem}" for file in sorted(code.glob("*.py")) if file.stem not in RUN_BY_NONE]
    found = {"cxrjax": ("cxrjax", ["cxrjax"]), "beside": ("Files beside the rooms", beside)}
    for folder in sorted(path.parent for path in code.glob("*/__init__.py")):
        inside = [f"cxrjax.{folder.name}.{file.stem}" for file in sorted(folder.glob("[!_]*.py"))]
        found[folder.name] = (f"cxrjax.{folder.name}", [f"cxrjax.{folder.name}", *inside])
    return {
        room: "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)])
        for room, (title, modules) in found.items()
    }


def docstring(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or "") if file.exists() else ""


def as_markdown(text: str) -> str:
    """A docstring, whose equations are indented and whose tables have columns of blanks: both are shown as they are."""
    return "\n\n".join(map(paragraph, text.split("\n\n")))


def paragraph(text: str) -> str:
    """Indented lines, and lines with columns of blanks or deep in one, as blocks; the others as prose."""
    lines = text.strip("\n").splitlines()
    if lines and all(line.startswith("    ") for line in lines):
        return "\n".join(lines)
    runs = [
        (of_table, list(run))
        for of_table, run in groupby(lines, lambda line: bool(re.search(r"\S {2,}\S|^ {8}", line)))
    ]
    return "\n\n".join(
        f"```text\n{textwrap.dedent(chr(10).join(run))}\n```" if of_table and len(run) > 1 else prose(run)
        for of_table, run in runs
    )


def prose(lines: Sequence[str]) -> str:
    words = "\n".join(lines).split("`")  # every second one is code
    return "`".join(
        part if at % 2 else part.replace("<", "&lt;").replace("][", "]\\[") for at, part in enumerate(words)
    )


def linked(text: str) -> str:
    """Addresses as links: "physionet.org/content/x" → [physionet.org/content/x](https://physionet.org/content/x)."""
    return re.sub(r"(?<![\w/.])([\w-]+(?:\.[\w-]+)+/[\w./-]*\w)", r"[\1](https://\1)", text)
