"""Sections, sentences and words of reports: written-out cases, random texts, and the real IU X-ray reports."""

import os
import random
import re
from pathlib import Path

import pandas
import pytest

from cxrjax.text import reports

MIMIC = re.sub(
    "(?m)^",
    " ",  # as in the release: one blank before every line, the empty ones too
    """\
                                FINAL REPORT
EXAMINATION:  CHEST (PA AND LAT)

INDICATION:  ___ year old woman with ?pleural effusion  // ?pleural effusion

TECHNIQUE:  Chest PA and lateral

COMPARISON:  ___

FINDINGS:

Cardiac size cannot be evaluated.  Large left pleural effusion is new.  Small
right effusion is new.

The upper lungs are clear.

IMPRESSION:

1.  Large left pleural effusion
2.  Small right effusion, new since
the prior study.
""",
)

XML = """\
<?xml version="1.0" encoding="utf-8"?>
<eCitation>
  <uId id="CXR4"/>
  <licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
  <MedlineCitation><Article><Abstract>
    <AbstractText Label="COMPARISON">None   available</AbstractText>
    <AbstractText Label="INDICATION"/>
    <AbstractText Label="FINDINGS">Opacities &lt; 1 cm in the
      left <i>apex</i>.</AbstractText>
    <AbstractText Label="IMPRESSION">1. Bullous emphysema.</AbstractText>
  </Abstract></Article></MedlineCitation>
  <MeSH><major>Bullous Emphysema</major><major>Opacity/lung/apex/left</major><automatic>emphysema</automatic></MeSH>
  <parentImage id="CXR4_IM-2050-1001"><figureId>F1</figureId></parentImage>
  <parentImage id="CXR4_IM-2050-2001"/>
</eCitation>
"""


def test_a_report_of_mimic():
    report = reports.sections(MIMIC)
    assert report == reports.Report(
        examination="CHEST (PA AND LAT)",
        indication="___ year old woman with ?pleural effusion // ?pleural effusion",
        technique="Chest PA and lateral",
        comparison="___",
        findings="Cardiac size cannot be evaluated. Large left pleural effusion is new. Small right effusion is new."
        "\n\nThe upper lungs are clear.",
        impression="1. Large left pleural effusion\n\n2. Small right effusion, new since the prior study.",
    )
    assert reports.sentences(report.impression) == [
        "1. Large left pleural effusion",
        "2. Small right effusion, new since the prior study.",
    ]


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: re.sub("(?m)^ ", "", text)])
def test_line_ends_and_the_leading_blank_do_not_matter(change):
    assert reports.sections(change(MIMIC)) == reports.sections(MIMIC)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("CONCLUSION", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("IMPRESSOIN", "impression"),
        ("MPRESSION", "impression"),
        ("FINDNGS", "findings"),
        ("FINIDNGS", "findings"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PORTABLE AP VIEW", "findings"),
        ("REASON FOR EXAM", "indication"),
        ("REASON FOR EXAMINATION", "indication"),
        ("CLINICAL HISTORY", "history"),
        ("COMPARISONS", "comparison"),
        ("COMPARISON FILM", "comparison"),
        ("TYPE OF EXAMINATION", "examination"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("NOTIFICATION", "notification"),
    ],
)
def test_names_of_headers(header, name):
    report = reports.sections(f"                FINAL REPORT\n {header}:  Words of it.\n")
    assert getattr(report, name) == "Words of it."


def test_other_headers_end_a_section_and_are_kept():
    report = reports.sections("FINAL REPORT\n CHEST RADIOGRAPH\n FINDINGS: Clear.\n DOSE (MGY):  0.1\n OTHER: None.\n")
    assert report == reports.Report(
        findings="Clear.", other=(("preamble", "CHEST RADIOGRAPH"), ("dose (mgy)", "0.1"), ("other", "None."))
    )


@pytest.mark.parametrize(
    "text",
    ["FINDINGS: See Comparison: none.", "FINDINGS: At 8:15 PM: seen.", "FINDINGS: CT: no.", "FINDINGS: Ratio\n CT:2."],
)
def test_only_capitals_at_the_start_of_a_line_are_a_header(text):
    assert reports.sections(text).findings == text.removeprefix("FINDINGS: ").replace("\n", "")


def test_the_last_section_with_text_counts():
    report = reports.sections("\n CHEST:\n INDICATION: Cough.\n FINDINGS: Old.\n FINDINGS: New.\n IMPRESSION: \n")
    assert report == reports.Report(indication="Cough.", findings="New.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "                FINAL REPORT\n INDICATION:  Cough.\n \n The lungs are\n clear.\n \n No effusion.\n",
            {"indication": "Cough.", "last_paragraph": "The lungs are clear.\n\nNo effusion."},
        ),
        ("FINAL REPORT\n \n The lungs are clear.\n", {"last_paragraph": "The lungs are clear."}),
        ("The lungs are clear.", {"last_paragraph": "The lungs are clear."}),
        (
            "FINAL REPORT\n PORTABLE CHEST\n\n The lungs are clear.\n",
            {"other": (("preamble", "PORTABLE CHEST"),), "last_paragraph": "The lungs are clear."},
        ),
        ("INDICATION:  Cough.\n \n IMPRESSION:  \n", {"indication": "Cough."}),
        ("FINDINGS:\n\n INDICATION:  Cough.\n\n Clear.", {"indication": "Cough.", "last_paragraph": "Clear."}),
        (
            "HISTORY: Cough.\n\n Clear.\n\n IMPRESSION: No change.\n",
            {"history": "Cough.\n\nClear.", "impression": "No change."},
        ),
        (" \n", {}),
        ("", {}),
    ],
)
def test_the_last_paragraph_stands_in_for_findings_and_impression(text, expected):
    assert reports.sections(text) == reports.Report(**expected)


def test_addenda_and_wet_reads_on_top_are_kept_apart():
    line = "_" * 78
    on_top = (
        f" WET READ: ___ 8:15 PM\n  Effusion.\n {line}\n                FINAL ADDENDUM\n ADDENDUM:  Phoned to ___.\n"
    )
    on_top += f" IMPRESSION: Revised.\n {line}\n"
    report = reports.sections(on_top + MIMIC)
    plain = reports.sections(MIMIC)
    assert report.wet_read == "___ 8:15 PM Effusion."
    assert report.addendum == "Phoned to ___. IMPRESSION: Revised."
    assert report._replace(wet_read="", addendum="") == plain
    assert reports.sections((on_top + MIMIC).replace("\n", "\r\n")) == report
    unnamed = reports.sections(f" Phoned to ___.\n{line}\n{MIMIC}\n{line}\n Signed.\n")
    assert unnamed.addendum == "Phoned to ___." and unnamed.findings == plain.findings


def test_an_addendum_without_final_report_below_it():
    assert reports.sections(f"ADDENDUM\n Phoned.\n{'_' * 40}\n FINDINGS: Clear.\n") == reports.Report(
        findings="Clear.", addendum="Phoned."
    )
    assert reports.sections(" ADDENDUM: One.\n FINDINGS: Clear.\n ADDENDUM: Two.\n").addendum == "One.\n\nTwo."
    assert reports.sections(f" FINDINGS: Clear.\n{'_' * 40}\n IMPRESSION: Normal.\n") == reports.Report(
        findings="Clear.", impression="Normal."
    )


@pytest.mark.parametrize("form", ["text", "bytes", "file"])
def test_a_report_of_open_i(form, tmp_path):
    (tmp_path / "4.xml").write_text(XML)
    given = {"text": XML, "bytes": XML.encode(), "file": tmp_path / "4.xml"}[form]
    assert reports.open_i(given) == reports.OpenIReport(
        uid="CXR4",
        indication="",
        comparison="None available",
        findings="Opacities < 1 cm in the left apex.",
        impression="1. Bullous emphysema.",
        mesh_major=("Bullous Emphysema", "Opacity/lung/apex/left"),
        mesh_automatic=("emphysema",),
        image_ids=("CXR4_IM-2050-1001", "CXR4_IM-2050-2001"),
    )


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (XML[:300], "The given text is not well-formed XML: "),
        ("ecgen-radiology/4.xml", "The given text is not well-formed XML: "),
        (b"", "The given text is not well-formed XML: "),
        (XML.replace("utf-8", "utf-9").encode(), "The given text is not well-formed XML: "),
        ("<html><uId/></html>", "The given text is not a report of Open-i: .* its root is <html>"),
    ],
)
def test_what_is_no_report_of_open_i(xml, said):
    with pytest.raises(ValueError, match=said):
        reports.open_i(xml)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "7.xml").write_text(XML[:-20])
    with pytest.raises(ValueError, match=r"The report .*7\.xml is not well-formed XML: "):
        reports.open_i(tmp_path / "7.xml")


@pytest.mark.parametrize(
    "text",  # a bar where it must be split
    [
        "A 2.5 cm nodule.|No effusion.",
        "Discussed with Dr. Smith.|No change.",
        "Discussed with Dr. J. A. Smith by John B. Doe.|No change.",
        "Devices, i.e. the PICC, are stable.|Others, e.g. Swan-Ganz, are out.",
        "1. No pneumothorax.|2. Heart size normal.",
        "1. Pleural effusions|2. Opacity at the apex|3. 1.4 cm nodule.|Chest|1. Clear.",
        "Fracture of right rib 4.|The small effusion is stable.",
        "Seen at 9:15 a.m. on Monday.|Read at 3 p.m. EST.|Phoned at 4 p.m.|The team knows.",
        "Fracture of T12.|3 mm nodule.|Disk at L1.|Normal.",
        "Hepatitis, type C.|No effusion.",
        "Pleural effusion..|Heart normal... and stable ...|Aorta.",
        "Opacity in the apex.|There is none in the left CT.|Heart XXXX.|In the left, 2.5.",
        "Is this new?|Nodule (unchanged.)|No effusion!|None.",
        "Pneumonia vs. Edema.|Approx. 3 cm.|St. Jude valve.",
        "XXXX are normal.|XXXX.|___.|___ catheter.",
        "no pneumothorax.|heart size normal.|seen at 3 p.m. by phone.",
        "No stop at the end",
    ],
)
def test_sentences(text):
    joined = re.sub(r"apex\.\|There|XXXX\.\|In", lambda found: found[0].replace("|", ""), text)  # no blank there
    assert reports.sentences(joined.replace("|", " ")) == text.split("|")


def test_sentences_of_wrapped_text():
    text = "The heart is\n normal.  Lungs\nclear.\n \nPA\r\n\r\nVIEW\n\n1) No\r\n effusion\r\n2) None"
    assert reports.sentences(text) == [
        "The heart is normal.",
        "Lungs clear.",
        "PA",
        "VIEW",
        "1) No effusion",
        "2) None",
    ]
    assert reports.sentences(" \n . \n\n--") == []
    assert reports.sentences("Clear. . Heart normal. .") == ["Clear.", ". Heart normal. ."]


@pytest.mark.parametrize(
    ("text", "dropped", "kept"),
    [
        ("Normal chest x-XXXX.", "Normal chest.", "Normal chest [UNK]."),
        ("XXXX-year-old XXXX with XXXX.", "with.", "[UNK] with [UNK]."),
        ("___ year old, see ___/___ ___. New.", "year old, see. New.", "[UNK] year old, see [UNK]. New."),
        ("XXXX/granulomas (XXXX), XXXX's", "/granulomas (),", "[UNK]/granulomas ([UNK]), [UNK]"),
        ("Dr. XXXX at XXXXPM\n\nXXXX", "Dr. at", "Dr. [UNK] at [UNK]\n\n[UNK]"),
        ("XX, x_x and well-expanded.", "XX, x_x and well-expanded.", "XX, x_x and well-expanded."),
        ("XXXX", "", "[UNK]"),
    ],
)
def test_deidentification_marks(text, dropped, kept):
    assert reports.without_marks(text) == dropped
    assert reports.without_marks(text, r"[UNK]") == kept


@pytest.mark.parametrize(
    ("findings", "impression", "expected"),
    [
        ("", "1. No pneumothorax. 2. Heart size normal.", "no pneumothorax heart size normal"),
        ("Clear.", "", None),
        ("Clear. Heart size normal.", "", "heart size normal"),
        ("Clear lungs.", "", None),
        ("Lungs are clear.", "No pneumothorax.", "no pneumothorax lungs are clear"),
        ("Lungs are clear.", "", "lungs are clear"),
        ("A 2.5 cm nodule,\nleft x-ray.", "", "5 cm nodule left x ray"),
        ("Ergüsse links é 25°.", "T12. Old ___ fracture.", "old ___ fracture ergsse links 25"),
        ("é è. Two words.", "", None),
        ("é clear. Two words.", "", "clear two words"),
        ("", "", None),
    ],
)
def test_text_as_mgca_has_it(findings, impression, expected):
    assert reports.mgca_text(findings, impression) == expected


def test_sentences_as_mgca_has_them():
    assert reports.mgca_sentences("Lungs are clear. Stable.", "1. No edema. 2. PICC in 3.5 cm.") == [
        "no edema",
        "picc in",
        "5 cm",
        "lungs are clear",
    ]


def test_random_texts_lose_nothing():
    pieces = [
        "FINDINGS:",
        "IMPRESSION:",
        "FINAL REPORT",
        "_" * 12,
        "___",
        "XXXX",
        "Dr.",
        "1.",
        "2.",
        "2.5",
        "a.m.",
        "é",
    ]
    pieces += [
        "The heart",
        "is clear.",
        "apex.There",
        "(no)",
        "A.",
        ".",
        "?",
        "\n",
        "\n \n",
        "\r\n",
        " ",
        "\t",
        ":",
        "ADDENDUM",
    ]
    generator = random.Random(0)
    for _ in range(2000):
        between = generator.choices(["", " ", "\n", "\n "], k=25)
        text = "".join(map(str.__add__, generator.choices(pieces, k=generator.randint(0, 25)), between))
        found = reports.sentences(text)
        assert all(re.search(r"\w", sentence) and sentence == " ".join(sentence.split()) for sentence in found)
        assert _words("".join(found)) == _words(text)
        report = reports.sections(text)
        if "FINDINGS:" not in text and "IMPRESSION:" not in text:
            assert "".join(report[:-1] + sum(report.other, ())).count("heart") == text.count("heart")
        assert not re.search("XXXX|___", reports.without_marks(text))


def _words(text):
    return re.sub(r"\W", "", text)


@pytest.mark.skipif("CXRJAX_REAL_DATA" not in os.environ, reason="CXRJAX_REAL_DATA names no folder of real reports")
def test_real_reports():
    table = Path(os.environ["CXRJAX_REAL_DATA"]) / "iu_reports" / "reports.csv"
    frame = pandas.read_csv(table, dtype=str, keep_default_na=False)
    for findings, impression, indication in zip(frame.findings, frame.impression, frame.indication, strict=True):
        for text in (findings, impression, indication):
            found = reports.sentences(text)
            assert "".join(" ".join(found).split()) == "".join(text.split())
            assert not any(re.fullmatch(r"\d{1,2}\.|\W*", sentence) for sentence in found)
            assert not any(re.search(r"(^|\b(Dr|vs|approx)|e\.g)\.$", sentence) for sentence in found[:-1])
            assert not any(re.search(r"[a-z]{3}\. ?[A-Z][a-z]{3}", sentence) for sentence in found)
            assert "XXXX" not in reports.without_marks(text) + reports.without_marks(text, "[UNK]")
        indented = (
            f"FINAL REPORT\n INDICATION:  {indication}\n \n FINDINGS: \n \n {findings}\n \n IMPRESSION:  {impression}\n"
        )
        report = reports.sections(indented)
        assert (report.findings, report.impression) == (findings, impression)
