"""IU X-ray in its three layouts, with invented reports: fields, names and projections, and broken downloads."""

import json
import os
from pathlib import Path

import cv2
import pandas
import pytest

from cxrjax.datasets import iu_xray, schema
from cxrjax.datasets.release import LayoutError
from cxrjax.datasets.table import TableError
from cxrjax.input import converted_sets, source
from cxrjax.input.studies import studies
from tests import dicom_files, official

PICTURES = [
    # official name, Kaggle's name, report, projection
    ("CXR1_1_IM-0001-3001", "1_IM-0001-3001.dcm.png", "1", "Frontal"),
    ("CXR1_1_IM-0001-4001", "1_IM-0001-4001.dcm.png", "1", "Lateral"),
    ("CXR7_IM-2263-1001-0001", "7_IM-2263-1001-0001.dcm.png", "7", "Frontal"),
    ("CXR11_IM-0067-1001", "11_IM-0067-1001.dcm.png", "11", "Frontal"),
    ("CXR11_IM-0067-2001", "11_IM-0067-2001.dcm.png", "11", "Lateral"),
]
REPORTS = {
    # uid: MeSH, indication, comparison, findings, impression
    "1": ("normal", "An invented XXXX.", "None.", "Nothing at all & no more.", "Normal chest x-XXXX."),
    "7": ("Opacity/lung/left;Aorta/tortuous;Opacity/lung/apex", "", "", "", "Something on the left."),
    "11": ("No Indexing", "", "", "A picture of a hat.", ""),
    "12": ("Cardiomegaly/mild", "", "", "No picture was taken.", ""),
}
LABELS = ("Aorta", "Cardiomegaly", "No Finding", "Opacity")
XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
<licenseType>open-access</licenseType><ccLicense>byncnd</ccLicense>
<uId id="CXR{uid}" />
<MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">{comparison}</AbstractText>
<AbstractText Label="INDICATION">{indication}</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH>{mesh}</MeSH>
{pictures}
</eCitation>"""


def write_xml(folder):
    folder.mkdir(parents=True)
    for uid, (mesh, *parts) in REPORTS.items():
        parts = (part.replace("&", "&amp;") for part in parts)
        text = XML.format(
            uid=uid,
            **dict(zip(("indication", "comparison", "findings", "impression"), parts, strict=True)),
            mesh="".join(f"<major>{term}</major>" for term in mesh.split(";")) + "<automatic>hat</automatic>",
            pictures="".join(
                f'<parentImage id="{name}"><figureId>F1</figureId><url>/{name}.jpg</url></parentImage>\n'
                for name, _, report, _ in PICTURES
                if report == uid
            ),
        )
        (folder / f"{uid}.xml").write_text(text)


def write_pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(names, official.pictures(len(names)), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), pixels)


def write_projections(raw):
    rows = [(report, name, projection) for _, name, report, projection in PICTURES]
    pandas.DataFrame(rows, columns=["uid", "filename", "projection"]).to_csv(
        raw / "indiana_projections.csv", index=False
    )


@pytest.fixture
def open_i(tmp_path):
    """The official layout, without the table of projections."""
    write_xml(tmp_path / "official" / "ecgen-radiology")
    write_pictures(tmp_path / "official" / "NLMCXR_png", [f"{row[0]}.png" for row in PICTURES])
    return tmp_path / "official"


@pytest.fixture
def kaggle(tmp_path):
    raw = tmp_path / "kaggle"
    write_pictures(raw / "images" / "images_normalized", [row[1] for row in PICTURES])
    write_projections(raw)
    rows = [(uid, mesh, mesh, "Xray Chest PA and Lateral", *parts) for uid, (mesh, *parts) in REPORTS.items()]
    head = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
    pandas.DataFrame(rows, columns=head).to_csv(raw / "indiana_reports.csv", index=False)
    return raw


@pytest.fixture
def r2gen(tmp_path):
    """R2Gen's layout, with the blank key that one copy has for test."""
    raw = tmp_path / "iu_xray"
    listing, names = {}, []
    for split, study in (("train", "CXR2384_IM-0942"), ("val", "CXR2926_IM-1328"), ("", "CXR1_1_IM-0001")):
        paths = [f"{study}/{number}.png" for number in range(2)]
        listing[split] = [{"id": study, "report": f"Findings of {study}.", "image_path": paths, "split": split}]
        names += paths
    write_pictures(raw / "images", names)
    (raw / "annotation.json").write_text(json.dumps(listing))
    return raw


def labels_with(*present):
    return [schema.PRESENT if name in present else schema.ABSENT for name in LABELS]


def test_official_fields_come_back(open_i, tmp_path):
    write_projections(open_i)
    made = official.convert(iu_xray.manifest(open_i), tmp_path)
    assert not made.conversion.problems and set(made.records) == {row[0] for row in PICTURES}
    for name, _, uid, projection in PICTURES:
        split, example = made.records[name]
        _, indication, _, findings, impression = REPORTS[uid]
        assert split == schema.assign_split("iu_xray", f"CXR{uid}")
        assert example["patient_id"] == example["study_id"] == f"CXR{uid}"
        assert example["view"] == {"Frontal": "PA", "Lateral": "LATERAL"}[projection]
        assert (example["report"]["findings"], example["report"]["impression"]) == (findings, impression)
        assert indication in example["report"]["text"] and findings in example["report"]["text"]
    text = made.records[PICTURES[0][0]][1]["report"]["text"]
    assert text.startswith("COMPARISON: None.\n\nINDICATION: An invented XXXX.\n\nFINDINGS: Nothing")
    assert converted_sets.open_set(made.conversion.directory).label_names == LABELS
    found = [list(made.records[row[0]][1]["labels"]) for row in PICTURES]
    assert found[0] == found[1] == labels_with("No Finding") and found[2] == labels_with("Aorta", "Opacity")
    assert found[3] == [schema.NOT_MENTIONED] * 4
    assert "read in the official layout" in made.said and "1 reports have no picture" in made.said
    assert "Frontal pictures are called PA" in made.said and "no known projection" not in made.said
    assert "7470" in made.conversion.counts


def test_without_projections_no_view_is_guessed(open_i):
    made = iu_xray.manifest(open_i)
    assert {row.view for row in made.rows} == {"UNKNOWN"}
    assert any(
        "5 pictures have no known projection in a table. Kaggle's indiana_projections.csv" in remark
        for remark in made.remarks
    )


def test_kaggle_is_the_same_under_its_own_names(kaggle, open_i, tmp_path):
    write_projections(open_i)
    by_name = {row.image_id: row for row in iu_xray.manifest(open_i).rows}
    made = iu_xray.manifest(kaggle)
    assert "The folder was read in the Kaggle layout." in made.remarks and made.label_names == LABELS
    for row, (name, own, *_) in zip(made.rows, PICTURES, strict=True):
        assert row.image_id == own.removesuffix(".dcm.png") and row.file.name == own
        assert row._replace(file=None, image_id=name) == by_name[name]._replace(file=None)
    converted = official.convert(made, tmp_path)
    assert len(converted.records) == 5 and "7466" in converted.conversion.counts


def test_views_of_names_without_the_usual_form_are_not_mixed_up(kaggle):
    write_pictures(kaggle / "images", ["scan_a.png", "scan_b.png"])
    with open(kaggle / "indiana_projections.csv", "a") as file:
        file.write("11,scan_a.png,Frontal\n11,scan_b.png,Lateral\n")
    found = {row.image_id: row.view for row in iu_xray.manifest(kaggle).rows}
    assert (found["scan_a"], found["scan_b"]) == ("PA", "LATERAL") and len(found) == 7


def test_kaggle_pictures_get_official_names_where_they_can_be_looked_up(kaggle):
    write_xml(kaggle / "ecgen-radiology")
    made = iu_xray.manifest(kaggle)
    assert [row.image_id for row in made.rows] == [row[0] for row in PICTURES] and not made.problems
    assert "The folder was read in the Kaggle layout." in made.remarks


def test_r2gen_keeps_its_split(r2gen, tmp_path):
    made = official.convert(iu_xray.manifest(r2gen), tmp_path)
    assert {name: split for name, (split, _) in made.records.items()} == {
        **dict.fromkeys(("CXR2384_IM-0942/0", "CXR2384_IM-0942/1"), "train"),
        **dict.fromkeys(("CXR2926_IM-1328/0", "CXR2926_IM-1328/1"), "val"),
        **dict.fromkeys(("CXR1_1_IM-0001/0", "CXR1_1_IM-0001/1"), "test"),
    }
    example = made.records["CXR2384_IM-0942/1"][1]
    assert (example["study_id"], example["view"], len(example["labels"])) == ("CXR2384", "UNKNOWN", 0)
    assert example["report"] == {
        "findings": "Findings of CXR2384_IM-0942.",
        "impression": "",
        "text": example["report"]["findings"],
    }
    (first, second) = (official.pixels(made.records[f"CXR2384_IM-0942/{number}"][1]) for number in range(2))
    assert (first != second).any()
    assert "6 pictures have no known projection" in made.said and "2069" in made.conversion.counts


def test_frontal_lateral_and_report_are_one_study(open_i, tmp_path):
    write_projections(open_i)
    made = official.convert(iu_xray.manifest(open_i), tmp_path)
    split, _ = made.records["CXR1_1_IM-0001-3001"]
    whole = studies(source.select(converted_sets.open_set(made.conversion.directory), split), require_lateral=True)
    (study,) = (study for study in map(whole.__getitem__, range(len(whole))) if study["study_id"] == "CXR1")
    assert [study[part][0]["image_id"] for part in ("frontals", "laterals")] == [row[0] for row in PICTURES[:2]]
    assert study["report"]["impression"] == "Normal chest x-XXXX."


def test_missing_pictures_and_broken_reports_are_named(open_i):
    (open_i / "NLMCXR_png" / "CXR1_1_IM-0001-4001.png").unlink()
    (open_i / "ecgen-radiology" / "7.xml").write_text("<eCitation><uId")
    made = iu_xray.manifest(open_i)
    assert [(problem.file, problem.kind) for problem in made.problems] == [
        ("ecgen-radiology/7.xml", "report"),
        ("CXR1_1_IM-0001-4001.png", "missing"),
    ]
    assert "not well-formed XML" in made.problems[0].reason and len(made.rows) == 3
    said = " ".join(made.remarks)
    assert "1 of the 4 pictures that the tables name are missing" in said
    assert "1 pictures belong to no report and were left out: NLMCXR_png/CXR7_IM-2263-1001-0001.png." in said


def test_kaggle_without_a_report_or_its_tables(kaggle):
    table = pandas.read_csv(kaggle / "indiana_reports.csv")
    table[table["uid"] != 7].to_csv(kaggle / "indiana_reports.csv", index=False)
    made = iu_xray.manifest(kaggle)
    assert [(problem.file, problem.kind) for problem in made.problems] == [("7_IM-2263-1001-0001.dcm.png", "report")]
    assert len(made.rows) == 5 and made.rows[2].labels == (schema.NOT_MENTIONED,) * 2 and made.rows[2].text == ""
    (kaggle / "indiana_reports.csv").unlink()
    with pytest.raises(LayoutError, match=r"has no indiana_reports.csv .*tables there: indiana_projections.csv"):
        iu_xray.manifest(kaggle)
    (kaggle / "indiana_projections.csv").write_text("uid,file\n1,a.png\n")
    with pytest.raises(TableError, match="has no column 'filename'; its columns are: uid, file"):
        iu_xray.manifest(kaggle)


def test_other_folders_and_broken_annotations_are_refused(r2gen, tmp_path):
    annotation = r2gen / "annotation.json"
    for text in (
        '{"train": [{"id"',
        '{"holdout": [{"id": "CXR1", "report": "", "image_path": []}]}',
        '{"train": [{}]}',
    ):
        annotation.write_text(text)
        with pytest.raises(LayoutError, match="annotation.json is no annotation of R2Gen, splits train, val and test"):
            iu_xray.manifest(r2gen)
    annotation.unlink()
    with pytest.raises(
        LayoutError, match=r"no ecgen-radiology/\*.xml, indiana_projections.csv or annotation.json\. .*openi"
    ):
        iu_xray.manifest(r2gen)
    with pytest.raises(LayoutError, match="is a file, not a folder"):
        iu_xray.manifest(r2gen / "images" / "CXR2384_IM-0942" / "0.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.csv").write_text("Path,Sex\n")
    with pytest.raises(LayoutError, match="has no .png or .dcm file; it holds 1 x .csv"):
        iu_xray.manifest(tmp_path / "other")


@pytest.mark.skipif("CXRJAX_REAL_DATA" not in os.environ, reason="CXRJAX_REAL_DATA is not set")
def test_real_names_and_mesh_terms():
    """Real picture names agree between the two ways of writing them, and real MeSH terms give whole labels."""
    folder = Path(os.environ["CXRJAX_REAL_DATA"]) / "iu_reports"
    index = pandas.read_csv(folder / "image_index.csv")
    official_keys = {iu_xray._key(name) for name in index["image_id"]}
    kaggle_keys = {
        iu_xray._key(f"{name.removeprefix('CXR').removeprefix('1_1_')}.dcm.png") for name in index["image_id"]
    }
    assert len(official_keys) == len(index) and all(key[0] for key in official_keys)
    assert len(official_keys & kaggle_keys) >= len(index) - 2
    mesh = pandas.read_csv(folder / "reports.csv")["mesh_major"].dropna()
    terms = [iu_xray._terms(tuple(cell.split(";"))) for cell in mesh]
    names = set().union(*(found for found in terms if found))
    assert {"No Finding", "Cardiomegaly", "Pleural Effusion", "Opacity"} <= names and "No Indexing" not in names
    assert sum(found == {"No Finding"} for found in terms if found) > 900
    assert not any("/" in name or name != name.strip() for name in names)


def test_views_come_from_the_table_of_dicom_headers_where_kaggle_says_nothing(open_i):
    """torchxrayvision's nlmcxr_dicom_metadata.csv has the View Position of every header, blank for many."""
    rows = [(PICTURES[0][0], "PA"), (PICTURES[1][0], "LL"), (PICTURES[2][0], "AP"), (PICTURES[3][0], "")]
    path = open_i / "nlmcxr_dicom_metadata.csv.gz"
    pandas.DataFrame(rows, columns=["imageid", "View Position"]).to_csv(path, index=False)
    made = iu_xray.manifest(open_i)
    views = {row.image_id: row.view for row in made.rows}
    assert [views[row[0]] for row in PICTURES] == ["PA", "LATERAL", "AP", "UNKNOWN", "UNKNOWN"]
    assert any("projections are those of nlmcxr_dicom_metadata.csv.gz" in remark for remark in made.remarks)
    write_projections(open_i)
    views = {row.image_id: row.view for row in iu_xray.manifest(open_i).rows}
    assert [views[row[0]] for row in PICTURES] == ["PA", "LATERAL", "PA", "PA", "LATERAL"]


def test_dicom_originals_are_read_and_say_their_views(tmp_path):
    raw = tmp_path / "originals"
    write_xml(raw / "ecgen-radiology")
    for number, ((_, name, report, _), pixels) in enumerate(zip(PICTURES, official.pictures(5), strict=True)):
        path = raw / "NLMCXR_dcm" / report / name.removesuffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        dicom_files.write(path, pixels, ViewPosition=("PA", "LL", "AP", "PA", "")[number])
    made = official.convert(iu_xray.manifest(raw), tmp_path)
    views = {image_id: example["view"] for image_id, (_, example) in made.records.items()}
    assert [views[row[0]] for row in PICTURES] == ["PA", "LATERAL", "AP", "PA", "UNKNOWN"]
