"""A results page as one HTML file that needs nothing beside it, and as Markdown.

A page is a list of parts: headings, texts, tables, drawings, pictures, notes. A click on the head of a column sorts a
table by it; numbers and intervals are sorted by value. Without scripts they are plain tables.
"""

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cxrjax.evals.base import Interval, bounds


class Heading(NamedTuple):
    """level: 2 or 3; short: how the table of contents names it ("": not at all)."""

    text: str
    level: int = 2
    short: str = ""


class Text(NamedTuple):
    text: str


class Notes(NamedTuple):
    """Sentences that a reader must know."""

    sentences: list[str]


class Gain(NamedTuple):
    """A difference with its interval: shown with its sign, and bold where the interval leaves out zero."""

    interval: Interval


Cell = str | int | float | Interval | Gain | None
"""None is shown as an empty cell: nothing is known."""


class Table(NamedTuple):
    """columns: their names; rows: a cell per column; explanation: stands between the title and the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    explanation: str = ""


class Drawing(NamedTuple):
    """svg: as `charts` draws it; Markdown has its caption only."""

    svg: str
    caption: str


class Picture(NamedTuple):
    """png: the bytes of its file."""

    png: bytes
    caption: str


class Pictures(NamedTuple):
    """A row of pictures under one title."""

    title: str
    items: Sequence[Picture]


Part = Heading | Text | Notes | Table | Drawing | Pictures


class Shown(NamedTuple):
    """How a cell is shown: its text, the value that it sorts by (None: by its text), and whether it is to stand out."""

    text: str
    value: float | None = None
    clear: bool = False


MANY, MOST = 8, 12
"""More columns are set in small type, or have their intervals on two lines, so that a table fits a page of 1280 px."""

LONG = 40
"""Tables of more rows are folded until a click opens them, or the page is printed."""

_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1200px;margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;margin:.2rem 0}h2{border-top:1px solid #ccc;padding-top:1rem;margin-top:2.5rem}
h3{margin:1.6rem 0 .4rem}nav ul{columns:2 20rem;padding-left:1.2rem}.about{color:#555}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.4rem 0 1rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;border-bottom:1px solid #ddd}
th{text-align:left;vertical-align:bottom;border-bottom:2px solid #888}
h1,h2,nav a{overflow-wrap:anywhere}td{overflow-wrap:break-word}
td.number{white-space:nowrap;text-align:right}td small{display:block;color:#555}
table{max-width:100%}.many th,.many td{padding:.25rem .35rem;font-size:.8rem}
.many td small{font-size:.7rem}.many th button::after{padding-left:.1rem}
.most td small{white-space:normal;width:4.1rem;margin-left:auto}
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid #0072b2}
th button::after{content:"\\2195";color:#bbb;padding-left:.3rem}
th[aria-sort=ascending] button::after{content:"\\2191";color:#333}
th[aria-sort=descending] button::after{content:"\\2193";color:#333}
.clear{font-weight:700}
figure{display:inline-block;width:500px;max-width:100%;margin:.4rem 1.2rem .8rem 0;vertical-align:top}
.pictures figure{width:320px;overflow-wrap:anywhere}
figcaption{font-size:.85rem;color:#444}
svg text{font:12px system-ui,sans-serif;fill:#333}svg{max-width:100%;height:auto}
summary{cursor:pointer;color:#555}summary h3{display:inline-block;color:#1a1a1a}
.legend{list-style:none;padding:0;margin:.2rem 0;font-size:.85rem;display:flex;flex-wrap:wrap;gap:.2rem 1rem}
.notes{background:#fff8e1;border-left:4px solid #e69f00;padding:.4rem 1rem;font-size:.9rem}
.pictures img{display:block;width:320px;height:320px;background:#000}
@media print{th button::after{content:""}nav{display:none}}
"""

# A cell sorts by data-value where it has one; cells of which nothing is known stay last either way.
_SCRIPT = """
document.querySelectorAll('table').forEach(function (table) {
  var heads = Array.from(table.tHead.rows[0].cells), body = table.tBodies[0];
  heads.forEach(function (head, column) {
    head.querySelector('button').addEventListener('click', function () {
      var down = head.getAttribute('aria-sort') === 'ascending', sign = down ? -1 : 1;
      heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      var rows = Array.from(body.rows).map(function (row) {
        var cell = row.cells[column], number = cell.dataset.value;
        return {row: row, text: cell.textContent, number: number === undefined ? NaN : Number(number)};
      });
      rows.sort(function (a, b) {
        if (!a.text !== !b.text) return a.text ? -1 : 1;
        if (isNaN(a.number) !== isNaN(b.number)) return isNaN(a.number) ? 1 : -1;
        var order = isNaN(a.number) ? a.text.localeCompare(b.text, 'en', {numeric: true}) : a.number - b.number;
        return sign * order;
      });
      rows.forEach(function (item) { body.appendChild(item.row); });
    });
  });
});
window.addEventListener('beforeprint', function () {
  document.querySelectorAll('details').forEach(function (one) { one.open = true; });
});
"""


def to_html(title: str, about: str, parts: Sequence[Part]) -> str:
    """The page. title, about: plain text."""
    heads = [part for part in parts if isinstance(part, Heading) and part.short]
    links = [f'<li><a href="#{_anchor(heads, head)}">{_text(head.short)}</a></li>' for head in heads]
    contents = f"<nav><ul>{''.join(links)}</ul></nav>" if len(links) > 1 else ""
    body = "\n".join(_html(part, heads) for part in parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f'<style>{_STYLE}</style></head><body>\n<h1>{_text(title)}</h1><p class="about">{_text(about)}</p>\n'
        f"{contents}\n{body}\n<script>{_SCRIPT}</script></body></html>\n"
    )


def to_markdown(title: str, about: str, parts: Sequence[Part]) -> str:
    """The same as text, without drawings and pictures. Names are no HTML, which readers of Markdown would run."""
    lines = [f"# {_plain(title)}", "", _plain(about), ""]
    for part in parts:
        match part:
            case Heading():
                lines += [f"{'#' * part.level} {_plain(part.text)}", ""]
            case Text():
                lines += [_plain(part.text), ""]
            case Notes():
                lines += [*(f"* {_cell(sentence)}" for sentence in part.sentences), ""]
            case Table():
                lines += [
                    f"**{_plain(part.title)}**",
                    "",
                    *([_plain(part.explanation), ""] if part.explanation else []),
                ]
                lines += [_row(part.columns), _row("---" for _ in part.columns)]
                lines += [*(_row(shown(cell).text for cell in row) for row in part.rows), ""]
    return "\n".join(lines)


def shown(cell: Cell) -> Shown:
    """How a cell is shown; a number that is not finite is as good as none."""
    match cell:
        case None:
            return Shown("")
        case Gain(Interval(value, low, high)) if math.isfinite(value):
            return Shown(f"{value:+.3f}{bounds(low, high, '+.3f')}", value, low > 0 or high < 0)
        case Interval(value, low, high) if math.isfinite(value):
            return Shown(f"{value:.3f}{bounds(low, high)}", value)
        case Gain() | Interval():
            return Shown("")
        case bool():
            return Shown("yes" if cell else "no")
        case int():
            return Shown(f"{cell:,}", cell)
        case float():
            return Shown(f"{cell:.3f}", cell) if math.isfinite(cell) else Shown("")
    return Shown(str(cell))


def _html(part: Part, heads: Sequence[Heading]) -> str:
    match part:
        case Heading():
            anchor = f' id="{_anchor(heads, part)}"' if part.short else ""
            return f"<h{part.level}{anchor}>{_text(part.text)}</h{part.level}>"
        case Text():
            return f"<p>{_text(part.text)}</p>"
        case Notes():
            return f'<ul class="notes">{"".join(f"<li>{_text(one)}</li>" for one in part.sentences)}</ul>'
        case Drawing():
            return f"<figure>{part.svg}<figcaption>{_text(part.caption)}</figcaption></figure>"
        case Pictures():
            return f'<div class="pictures"><h3>{_text(part.title)}</h3>{"".join(map(_picture, part.items))}</div>'
        case Table():
            head = "".join(f'<th scope="col"><button>{_breakable(name)}</button></th>' for name in part.columns)
            rows = "".join(f"<tr>{''.join(map(_td, row))}</tr>" for row in part.rows)
            text = f"<p>{_text(part.explanation)}</p>" if part.explanation else ""
            many = "many" * (len(part.columns) > MANY) + " most" * (len(part.columns) > MOST)
            table = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
            opened = f'<table class="{many}" aria-label="{_text(part.title)}">'
            title, body = f"<h3>{_text(part.title)}</h3>", f'{text}<div class="wide">{opened}{table}</table></div>'
            if len(part.rows) > LONG:
                return f"<details><summary>{title} {len(part.rows)} rows</summary>{body}</details>"
            return title + body
    raise TypeError(f"a results page has no part like {part!r}")


def _breakable(name: str) -> str:
    """A name that a narrow column may break where its parts meet, and nowhere else."""
    return re.sub("([_/@=])", r"\1<wbr>", _text(name))


def _picture(item: Picture) -> str:
    source, caption = f"data:image/png;base64,{base64.b64encode(item.png).decode()}", _text(item.caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _td(cell: Cell) -> str:
    text, value, clear = shown(cell)
    classes = [*(["number"] if value is not None else []), *(["clear"] if clear else [])]
    attributes = f' class="{" ".join(classes)}"' if classes else ""
    attributes += f' data-value="{value!r}"' if value is not None else ""
    # An interval stands below its value, which keeps tables narrow.
    value_alone, bracket, span = text.partition(" (") if isinstance(cell, Interval | Gain) else (text, "", "")
    below = f" <small>({_text(span)}</small>" if bracket else ""
    return f"<td{attributes}>{_breakable(value_alone)}{below}</td>"


def _anchor(heads: Sequence[Heading], head: Heading) -> str:
    return f"part-{next(number for number, one in enumerate(heads) if one is head)}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("\n", " ")


def _plain(text: str) -> str:
    return html.escape(str(text), quote=False)


def _text(text: str) -> str:
    return html.escape(str(text))
