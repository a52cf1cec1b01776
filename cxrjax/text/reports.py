"""Radiology reports to sections, sentences, and the words that image-text methods train on.

    report = sections(Path("files/p10/p10000032/s50414267.txt").read_text())      MIMIC-CXR
    report = open_i(Path("ecgen-radiology/1.xml"))                                IU X-ray (Open-i)
    sentences(report.findings)

Texts stay as published but for white space: wrapped lines are joined, and a blank line divides paragraphs and numbered
points. De-identification marks stay too; `without_marks` takes them out.

Headers, their names and the last paragraph are those of the section parser published with MIMIC-CXR
(MIT-LCP/mimic-cxr, txt/section_parser.py), but for this: likeness stands for its list of misspellings; a header also
counts in the first line, without a blank before it, and right below another; an addendum on top never gives the
findings; its exceptions for some fifty studies by number are left out.
"""

import difflib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Report(NamedTuple):
    """The sections of a free-text report; one that is not there is "".

    last_paragraph: where neither findings nor impression is there, what follows the first paragraph of the last section
    (of a report without headers: its first paragraph, if that is all). addendum, wet_read: those under a header, and
    those divided off on top by a line of underscores. other: (header in lower case, text) of any other section;
    "preamble" is what stands before the first header.
    """

    findings: str = ""
    impression: str = ""
    last_paragraph: str = ""
    indication: str = ""
    history: str = ""
    comparison: str = ""
    examination: str = ""
    technique: str = ""
    recommendations: str = ""
    notification: str = ""
    comment: str = ""
    addendum: str = ""
    wet_read: str = ""
    other: tuple[tuple[str, str], ...] = ()


class OpenIReport(NamedTuple):
    """One report of IU X-ray; a section that is missing is ""."""

    uid: str  # "CXR1"
    indication: str
    comparison: str
    findings: str
    impression: str
    mesh_major: tuple[str, ...]  # "Opacity/lung/upper lobe/right"
    mesh_automatic: tuple[str, ...]
    image_ids: tuple[str, ...]  # picture names without .png


_HEADER = re.compile(r"^[ \t]*([A-Z(][A-Z ()/,-]*):(?=\s|$)", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*(?:FINAL|PRELIMINARY) (?:REPORT|ADDENDUM)[ \t]*$", re.MULTILINE)
_DIVIDER = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)
_ON_TOP = re.compile(r"(?:\s*(?:FINAL )?(ADDENDUM|WET READ)\b:?)+")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_PARAGRAPH = re.compile(r"\n[ \t]*(?=\n|\d{1,2}[.)][ \t])")  # a blank line, or before a numbered point

_SECTIONS = [name for name in Report._fields if name not in ("last_paragraph", "other")]
_NAMES = {name.replace("_", " "): name for name in _SECTIONS} | {
    "clinical indication": "indication",
    "clinical information": "history",
    "conclusion": "impression",
    "exam": "examination",
    "reason for exam": "indication",
    "reason for examination": "indication",
    "reference exam": "comparison",
    "type of examination": "examination",
}
_NAMED_WITHIN = ("impression", "findings", "history", "comparison", "addendum")
_NUMBER_OF_VIEWS = re.compile(
    "chest|portable|ribs|bone window|one view|two views|(?:frontal|lateral|pa|ap) view"
    "|(?:pa|ap) and lat|lateral and (?:pa|ap)|frontal (?:and|upright|semi-upright)"
)


def sections(report: str) -> Report:
    """Splits a report at its headers: capitals and a colon at the start of a line, as in MIMIC-CXR.

    Headers that mean the same share a name: CONCLUSION and FINDINGS AND IMPRESSION are the impression, REASON FOR EXAM
    is the indication, CHEST, TWO VIEWS is the findings. Of a name used twice, the last section with text counts.
    """
    on_top, body = _addenda("\n".join(report.splitlines()))
    preamble, *rest = _HEADER.split(body)
    parts = [("preamble", preamble), *zip(map(_name, rest[::2]), rest[1::2], strict=True)]
    parts = [(name, text.strip()) for name, text in parts if text.strip()]
    if parts and not {"findings", "impression"} & {name for name, _ in parts}:
        name, text = parts.pop()
        first, *paragraphs = _BLANK_LINE.split(text, maxsplit=1)
        if name == "preamble" and not paragraphs:
            first, paragraphs = "", [text]
        parts += [(name, first), ("last_paragraph", "".join(paragraphs))]
    found = {}
    for name, text in on_top + parts:
        text = "\n\n".join(_paragraphs(_HEADING.sub("", text)))
        if name in ("addendum", "wet_read"):
            text = f"{found.get(name, '')}\n\n{text}".strip()
        if text:
            found[name] = text
    known = {name: found.pop(name) for name in (*_SECTIONS, "last_paragraph") if name in found}
    return Report(**known, other=tuple(found.items()))


def open_i(xml: bytes | str | Path) -> OpenIReport:
    """Reads a report of the official IU X-ray download (ecgen-radiology/<number>.xml).

    xml: the file's path as a Path, or what is in the file. Raises ValueError: no XML, or no report.
    """
    given = f"The report {xml}" if isinstance(xml, Path) else "The given text"
    try:
        root = ElementTree.fromstring(xml.read_bytes() if isinstance(xml, Path) else xml)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an encoding it does not know
        raise ValueError(f"{given} is not well-formed XML: {error}.") from None
    uid = next((element.get("id") for element in root.iter("uId")), None)
    if not uid:
        raise ValueError(f'{given} is not a report of Open-i: it lacks <uId id="CXR…"/>; its root is <{root.tag}>.')
    texts = {element.get("Label", "").lower(): _text(element) for element in root.iter("AbstractText")}
    return OpenIReport(
        uid,
        texts.get("indication", ""),
        texts.get("comparison", ""),
        texts.get("findings", ""),
        texts.get("impression", ""),
        mesh_major=tuple(map(_text, root.iterfind(".//MeSH/major"))),
        mesh_automatic=tuple(map(_text, root.iterfind(".//MeSH/automatic"))),
        image_ids=tuple(image.get("id", "") for image in root.iter("parentImage")),
    )


def without_marks(text: str, mark: str = "") -> str:
    """Takes out the de-identification marks ___ (MIMIC-CXR) and XXXX (IU X-ray).

    A word with a mark inside goes as a whole ("x-XXXX", "XXXX's", "___-year-old"): its rest is not a word. mark: put in
    place of each run of such words; a `tokenizer.Tokenizer` keeps "[UNK]" or "[MASK]" as one token.
    """
    hidden = re.sub(r"[\w'-]+", lambda word: "\0" if "XXXX" in word[0] or "___" in word[0] else word[0], text)
    replaced = re.sub(r"\0(?:[ /]*\0)*", lambda _: mark, hidden)
    return re.sub(r"[ \t]+(?=[ \t.,;:)])", "", replaced).strip()


_STOP = re.compile(r"[.?!]+[\"')\]]*(?=\s|$)|(?<=\w\w)\.(?=[A-Z][a-z])")  # the latter: "… in the left apex.There are …"
_ABBREVIATIONS = {"approx", "cf", "dr", "drs", "e.g", "eg", "fig", "i.e", "ie", "mr", "mrs", "ms", "prof", "st", "vs"}


def sentences(text: str) -> list[str]:
    """Splits into sentences, none of them without a word; nothing but white space is lost.

    A numbered point keeps its number ("2. Heart size normal."), and starts a sentence even if the one before lacks its
    full stop. Decimals, titles, initials, "i.e.", "a.m." and any full stop before a lower-case word do not split.
    """
    return [sentence for paragraph in _paragraphs(text) for sentence in _split(paragraph)]


def mgca_text(findings: str, impression: str) -> str | None:
    """The text that MGCA trains on: its sentences joined; None for a report of fewer than three words.

    Source: HKU-MedAI/MGCA, mgca/datasets/pretrain_dataset.py, followed to the letter: "2.5 cm" loses its 2, and no
    sentence boundary survives.
    """
    return " ".join(mgca_report(findings, impression)) or None


def mgca_report(findings: str, impression: str) -> list[str]:
    """`mgca_sentences`, or none of them where they have fewer than three words together."""
    sentences = mgca_sentences(findings, impression)
    return sentences if " ".join(sentences).count(" ") >= 2 else []


def mgca_sentences(findings: str, impression: str) -> list[str]:
    """The sentences of MGCA, impression first: lower-case ASCII words divided by blanks; those of one word dropped."""
    found = []
    for sentence in re.split(r"[0-9]*\.", f"{impression} {findings}"):
        plain = mgca_words(sentence)
        if len(re.findall(r"\w+", sentence)) > 1 and plain:
            found.append(" ".join(plain))
    return found


def mgca_words(text: str) -> list[str]:
    """Lower-case words of ASCII letters, digits and underscores."""
    words = re.findall(r"\w+", text.lower())
    plain = (word.encode("ascii", "ignore").decode() for word in words)
    return [word for word in plain if word]


def _addenda(report: str) -> tuple[list[tuple[str, str]], str]:
    """What is divided off on top of a report, as (name, text), and the report below."""
    layers = [layer for layer in _DIVIDER.split(report) if layer.strip()]
    labels = [_ON_TOP.match(layer) for layer in layers]
    final = next((number for number, layer in enumerate(layers) if "FINAL REPORT" in layer), None)
    on_top, body = [], []
    for number, (layer, label) in enumerate(zip(layers, labels, strict=True)):
        if number < final if final is not None else label and number + 1 < len(layers):
            name = "wet_read" if label and label[1] == "WET READ" else "addendum"
            on_top.append((name, layer[label.end() :] if label else layer))
        else:
            body.append(layer)
    return on_top, "\n\n".join(body)


@functools.cache
def _name(header: str) -> str:
    name = " ".join(header.lower().split())
    if name in _NAMES:
        return _NAMES[name]
    for part in _NAMED_WITHIN:
        if part in name:
            return part
    for like in difflib.get_close_matches(name, _NAMES, 1, 0.85):  # COMPARISONS, IMPRESSOIN
        return _NAMES[like]
    return "findings" if _NUMBER_OF_VIEWS.search(name) else name


def _paragraphs(text: str) -> list[str]:
    pieces = _PARAGRAPH.split("\n".join(text.splitlines()))
    return [" ".join(piece.split()) for piece in pieces if piece.strip()]


def _text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _split(paragraph: str) -> list[str]:
    found: list[str] = []
    start, point = 0, 0
    cased = paragraph != paragraph.lower()
    for stop in _STOP.finditer(paragraph):
        *earlier, word = paragraph[start : stop.start()].rsplit(None, 2) or [""]
        following = paragraph[stop.end() : stop.end() + 3].lstrip()
        end = stop.end()
        if cased and following[:1].islower() or _goes_on(earlier, word, following):
            continue
        if re.fullmatch(r"[0-9]{1,2}", word) and (not earlier or int(word) in (1, point + 1)):
            point, end = int(word), stop.start() - len(word)  # the next point: the sentence ends before its number
        if re.search(r"\w", paragraph[start:end]):
            found.append(paragraph[start:end].strip())
            start = end
    rest = paragraph[start:].strip()
    if re.search(r"\w", rest):
        return [*found, rest]
    return found[:-1] + [f"{sentence} {rest}".strip() for sentence in found[-1:]]


def _goes_on(earlier: Sequence[str], word: str, following: str) -> bool:
    """Whether the sentence goes on after `word` and its full stop."""
    word = word.lstrip("(['\"")
    if word.lower() in _ABBREVIATIONS:
        return True
    if re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", word):
        return not re.match(r"[A-Z](?:[a-z]|\s)", following)  # "at 9 a.m. EST", but "at 9 a.m. The"
    if re.fullmatch(r"[A-Z]", word):
        return not (earlier and earlier[-1][0].islower())  # "J. Smith", but "hepatitis C."
    return False
