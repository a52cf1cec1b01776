"""A small MIMIC-CXR-JPG in the official layout, with invented reports: every field, and every broken download."""

import csv
import gzip
import zipfile

import cv2
import numpy as np
import pytest

from cxrjax.datasets import mimic_cxr, schema
from cxrjax.datasets.release import LayoutError
from cxrjax.datasets.table import TableError
from cxrjax.input import converted_sets, source
from cxrjax.input.studies import studies
from tests import dicom_files, official

PICTURES = [
    # dicom, subject, study, view, split
    ("02aa804e-bde0afdd-112c0b34-7bc16630-4e384014", "10000032", "50414267", "PA", "train"),
    ("174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962", "10000032", "50414267", "LATERAL", "train"),
    ("2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab", "10000032", "53189527", "AP", "train"),
    ("68b5c4b1-227d0485-9cc38c3f-7b84ab51-4b472714", "11000011", "51967283", "LL", "validate"),
    ("a664b7a0-2d24a4d2-1f4b0a1f-5c1f2a30-8c1d9b77", "12000012", "50000099", "", "test"),
    ("ffe8b5a1-2d24a4d2-1f4b0a1f-5c1f2a30-8c1d9b77", "12000012", "50000099", "SWIMMERS", "test"),
]
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
).split(",")
FINDINGS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
).split(",")
CELLS = {
    "50414267": {"Atelectasis": "1.0", "Edema": "0.0", "Pneumonia": "-1.0"},
    "53189527": {"No Finding": "1.0"},
    "51967283": {"Support Devices": "1.0", "Pneumothorax": "0.0"},
}
HEADING = " " * 33 + "FINAL REPORT\n"
REPORTS = {
    "50414267": (
        HEADING + " EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___-year-old clockmaker with a cough.\n \n "
        "COMPARISON:  None.\n \n FINDINGS: \n \n Streaks of atelectasis at the left base, in the shape of a\n kite. "
        "No edema.\n \n IMPRESSION: \n \n 1. Atelectasis, invented.  2. Perhaps pneumonia.\n"
    ),
    "53189527": HEADING + " CHEST RADIOGRAPH\n\n IMPRESSION:  Nothing was invented.\n",
    "51967283": " FINDINGS: \n \n A tube that is not there.\n",
    "50000099": " FINDINGS: \n \n Two views of an empty room.\n\n IMPRESSION: \n \n Empty.\n",
}


def member(study):
    subject = next(row[1] for row in PICTURES if row[2] == study)
    return f"files/p{subject[:2]}/p{subject}/s{study}.txt"


def table(path, head, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def download(folder):
    """The JPEG release with its tables gzipped, and the zip of the reports."""
    raw = folder / "raw"
    for pixels, (dicom, subject, study, _, _) in zip(official.pictures(6), PICTURES, strict=True):
        folder = raw / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{dicom}.jpg"), pixels)
    table(
        raw / "mimic-cxr-2.0.0-metadata.csv.gz",
        METADATA,
        [[d, p, s, "CHEST", v, 64, 64, 21800506, 213014.531, "CHEST", "", "Erect"] for d, p, s, v, _ in PICTURES],
    )
    split_head = ["dicom_id", "study_id", "subject_id", "split"]
    table(raw / "mimic-cxr-2.0.0-split.csv.gz", split_head, [[d, s, p, split] for d, p, s, _, split in PICTURES])
    subjects = {row[2]: row[1] for row in PICTURES}
    for tool, columns in (("chexpert", FINDINGS), ("negbio", FINDINGS[::-1])):
        rows = [[subjects[s], s, *(cells.get(name, "") for name in columns)] for s, cells in CELLS.items()]
        table(raw / f"mimic-cxr-2.0.0-{tool}.csv.gz", ["subject_id", "study_id", *columns], rows)
    with zipfile.ZipFile(raw / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for study, text in REPORTS.items():
            archive.writestr(member(study), text)
    return raw


@pytest.fixture
def raw(tmp_path):
    return download(tmp_path)


def labels(**present):
    return [present.get(name.replace(" ", "_"), schema.NOT_MENTIONED) for name in mimic_cxr.LABELS]


def test_every_field_comes_back(raw, tmp_path):
    made = official.convert(mimic_cxr.manifest(raw), tmp_path)
    assert not made.conversion.problems and set(made.records) == {row[0] for row in PICTURES}
    expected_splits = {"train": "train", "validate": "val", "test": "test"}
    expected_projections = {
        "PA": "PA",
        "AP": "AP",
        "LATERAL": "LATERAL",
        "LL": "LATERAL",
        "": "UNKNOWN",
        "SWIMMERS": "UNKNOWN",
    }
    for dicom, subject, study, view, split in PICTURES:
        found_split, example = made.records[dicom]
        assert found_split == expected_splits[split]
        assert (example["patient_id"], example["study_id"]) == (subject, study)
        assert example["view"] == expected_projections[view] and example["sex"] == "" and example["age"] == -1
        assert example["report"]["text"] == REPORTS[study].strip()
    one, lateral, other, *rest = (made.records[row[0]][1] for row in PICTURES)
    expected = labels(Atelectasis=schema.PRESENT, Edema=schema.ABSENT, Pneumonia=schema.UNCERTAIN)
    assert list(one["labels"]) == list(lateral["labels"]) == expected
    assert list(other["labels"]) == labels(No_Finding=schema.PRESENT)
    assert list(rest[1]["labels"]) == labels()
    assert (
        one["report"]["findings"].startswith("Streaks of atelectasis")
        and "kite. No edema." in one["report"]["findings"]
    )
    assert "Perhaps pneumonia." in one["report"]["impression"] and "clockmaker" not in one["report"]["impression"]
    assert (other["report"]["findings"], other["report"]["impression"]) == ("", "Nothing was invented.")
    assert "2 pictures of the table have no known projection: none given (1), SWIMMERS (1)." in made.said
    assert "1 studies have no labels of chexpert" in made.said
    assert "377110" in made.conversion.counts and "227835" in made.conversion.counts
    expected_pixels = cv2.resize(official.pictures(1)[0], (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(official.pixels(one).astype(int) - expected_pixels).mean() < 4


def test_frontal_lateral_and_report_are_one_study(raw, tmp_path):
    made = official.convert(mimic_cxr.manifest(raw), tmp_path)
    whole = studies(source.select(converted_sets.open_set(made.conversion.directory), "train"), require_lateral=True)
    (study,) = (whole[number] for number in range(len(whole)))
    assert study["study_id"] == "50414267" and study["has_frontal"]
    assert [study[part][0]["image_id"] for part in ("frontals", "laterals")] == [PICTURES[0][0], PICTURES[1][0]]
    assert study["report"]["impression"].startswith("1. Atelectasis")


def test_negbio_plain_tables_of_2_1_0_and_unpacked_reports_give_the_same(raw):
    expected = mimic_cxr.manifest(raw)
    for file in raw.glob("*.csv.gz"):
        plain = file.with_name(file.name.removesuffix(".gz").replace("2.0.0", "2.1.0"))
        plain.write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    with zipfile.ZipFile(raw / "mimic-cxr-reports.zip") as archive:
        archive.extractall(raw)
    (raw / "mimic-cxr-reports.zip").unlink()
    assert mimic_cxr.manifest(raw, labels="negbio").rows == expected.rows


def test_dicom_original_is_read_where_there_is_no_jpeg(raw, tmp_path):
    jpegs = [next(raw.rglob(f"{dicom}.jpg")) for dicom, *_ in PICTURES]
    for pixels, jpeg in zip(official.pictures(6), jpegs, strict=True):
        dicom_files.write(jpeg.with_suffix(".dcm"), pixels, ViewPosition="AP", PatientSex="F", PatientAge="057Y")
    assert [row.file for row in mimic_cxr.manifest(raw).rows] == jpegs, "never both: they look different"
    for jpeg in jpegs:
        jpeg.unlink()
    made = official.convert(mimic_cxr.manifest(raw), tmp_path)
    assert not made.conversion.problems and len(made.records) == 6
    examples = [made.records[row[0]][1] for row in PICTURES]
    assert [example["view"] for example in examples] == ["PA", "LATERAL", "AP", "LATERAL", "AP", "AP"]
    assert {(example["sex"], example["age"]) for example in examples} == {("F", 57)}
    expected = cv2.resize(official.pictures(1)[0], (32, 32), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(official.pixels(examples[0]).ravel(), expected.ravel())[0, 1] > 0.99


def test_without_reports_the_set_is_written_and_says_so(raw, tmp_path):
    (raw / "mimic-cxr-reports.zip").unlink()
    made = official.convert(mimic_cxr.manifest(raw), tmp_path)
    assert "There are no reports" in made.said and "physionet.org/content/mimic-cxr;" in made.said
    assert "report" not in made.records[PICTURES[0][0]][1]


def test_half_a_download_names_every_missing_picture(raw, tmp_path):
    for dicom, *_ in PICTURES[1:4]:
        next(raw.rglob(f"{dicom}.jpg")).unlink()
    made = official.convert(mimic_cxr.manifest(raw), tmp_path)
    missing = [problem for problem in made.conversion.problems if problem.kind == "missing"]
    assert made.conversion.directory is None and len(missing) == 3
    assert missing[0].file == f"files/p10/p10000032/s50414267/{PICTURES[1][0]}.jpg"
    assert "3 of the 6 pictures that the tables name are missing" in made.said
    assert len(official.convert(mimic_cxr.manifest(raw), tmp_path, allow_bad=True).records) == 3


def test_missing_and_corrupt_reports_are_problems_of_their_study(raw):
    path = raw / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for study in ("50414267", "53189527", "51967283"):
            archive.writestr(member(study), REPORTS[study])
    damaged = path.read_bytes().replace(b"A tube that", b"A tubA that")
    path.write_bytes(damaged)
    made = mimic_cxr.manifest(raw)
    assert [(problem.file, problem.kind) for problem in made.problems] == [
        (member("51967283"), "report"),
        ("s50000099.txt", "report"),
    ]
    assert "CRC" in made.problems[0].reason
    texts = {row.study_id: row.text for row in made.rows}
    assert len(made.rows) == 6 and texts["50414267"] and texts["51967283"] == texts["50000099"] == ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for study in ("50414267", "53189527", "51967283"):
            archive.writestr(member(study), REPORTS[study] + (" " * 2**23 if study == "51967283" else ""))
    assert "more than 4 MiB, which no report has" in mimic_cxr.manifest(raw).problems[0].reason
    path.write_bytes(damaged[:300])
    with pytest.raises(LayoutError, match="mimic-cxr-reports.zip is no whole zip archive: fetch it again"):
        mimic_cxr.manifest(raw)


def test_rows_that_do_not_fit_are_named(raw):
    rows = [[d, s, p, split] for d, p, s, _, split in PICTURES[:5]] + [["stranger", "1", "1", "train"]]
    rows[1][3] = "holdout"
    table(raw / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], rows)
    table(
        raw / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ["subject_id", "study_id", *FINDINGS],
        [["10000032", "50414267", "2.0", *[""] * 13]],
    )
    cv2.imwrite(str(raw / "files" / "surplus.jpg"), official.pictures(1)[0])
    made = mimic_cxr.manifest(raw)
    assert [(problem.file, problem.kind) for problem in made.problems] == [
        ("s50414267", "row"),
        (PICTURES[1][0], "row"),
        (PICTURES[5][0], "row"),
        ("stranger", "row"),
    ]
    assert "has the label '2.0'" in made.problems[0].reason
    assert "no split of train, validate, test" in made.problems[1].reason
    assert len(made.rows) == 4 and any("1 pictures are not in" in remark for remark in made.remarks)


def test_another_folder_is_refused_with_what_is_there(raw, tmp_path):
    for name in ("metadata", "split", "chexpert"):
        file = raw / f"mimic-cxr-2.0.0-{name}.csv.gz"
        held = file.read_bytes()
        file.unlink()
        with pytest.raises(
            LayoutError, match=rf"has no mimic-cxr-\*-{name}\.csv .*physionet.org/content/mimic-cxr-jpg"
        ):
            mimic_cxr.manifest(raw)
        file.write_bytes(held[: len(held) // 2])
        with pytest.raises(TableError, match=f"mimic-cxr-2.0.0-{name}.csv.gz cannot be read"):
            mimic_cxr.manifest(raw)
        file.write_bytes(held)
    with pytest.raises(LayoutError, match="is a file, not a folder"):
        mimic_cxr.manifest(raw / "mimic-cxr-reports.zip")
    other = tmp_path / "chexpert"
    other.mkdir()
    (other / "train.csv").write_text("Path,Sex\n")
    with pytest.raises(LayoutError, match="train.csv"):
        mimic_cxr.manifest(other)
    for picture in raw.rglob("*.jpg"):
        picture.unlink()
    with pytest.raises(LayoutError, match="has no .jpg or .dcm file; it holds"):
        mimic_cxr.manifest(raw)


def test_a_blank_view_position_is_what_the_view_code_says(raw):
    codes = ["lateral", "postero-anterior", "", "", "antero-posterior", "postero-anterior"]
    rows = [
        [d, p, s, "CHEST", v, 64, 64, 21800506, 213014.531, "CHEST", code, "Erect"]
        for (d, p, s, v, _), code in zip(PICTURES, codes, strict=True)
    ]
    table(raw / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
    made = mimic_cxr.manifest(raw)
    assert [row.view for row in made.rows] == ["PA", "LATERAL", "AP", "LATERAL", "AP", "UNKNOWN"]
    assert any("1 pictures of the table have no known projection: SWIMMERS (1)" in remark for remark in made.remarks)


def test_a_radiologists_labels_are_those_of_the_test_part(raw):
    """mimic-cxr-2.1.0-test-set-labeled.csv calls Lung Opacity Airspace Opacity, and has no subject_id."""
    columns = ["Airspace Opacity" if name == "Lung Opacity" else name for name in FINDINGS]
    cells = [
        ["50000099", *("1" if name == "Airspace Opacity" else "-1" if name == "Edema" else "" for name in columns)]
    ]
    table(raw / "mimic-cxr-2.1.0-test-set-labeled.csv", ["study_id", *columns], cells)
    made = mimic_cxr.manifest(raw, "radiologist")
    by_id = {row.image_id: list(row.labels) for row in made.rows}
    assert by_id[PICTURES[4][0]] == labels(Lung_Opacity=1, Edema=-1)
    assert by_id[PICTURES[0][0]] == labels(Atelectasis=1, Edema=0, Pneumonia=-1)
    assert any("labelled the reports of 1 studies, 1 of them here in the test part" in each for each in made.remarks)
    (raw / "mimic-cxr-2.1.0-test-set-labeled.csv").unlink()
    with pytest.raises(LayoutError, match="test-set-labeled.csv"):
        mimic_cxr.manifest(raw, "radiologist")


def test_a_stray_jpeg_does_not_hide_the_dicom_originals(raw):
    for path in raw.rglob("*.jpg"):
        dicom_files.write(path.with_suffix(".dcm"), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        path.unlink()
    cv2.imwrite(str(raw / "preview.jpg"), official.pictures(1)[0])
    made = mimic_cxr.manifest(raw)
    assert not made.problems and {row.file.suffix for row in made.rows} == {".dcm"} and len(made.rows) == 6


PHRASES = (
    "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split\n"
    '{one},Atelectasis,"Streaks of atelectasis, at the left base",files/x.jpg,1000,2000,500,250,2000,4000,train\n'
    '{one},Atelectasis,"Streaks of atelectasis, at the left base",files/x.jpg,0,0,1000,1000,2000,4000,train\n'
    "{two},Edema,mild edema,files/y.jpg,16,16,32,8,64,64,test\n"
)


def test_phrases_of_ms_cxr_come_back_with_their_boxes(raw, tmp_path):
    one, two = PICTURES[0][0], PICTURES[5][0]
    (raw / "MS_CXR_Local_Alignment_v1.1.0.csv").write_text(PHRASES.format(one=one, two=two))
    made = official.convert(mimic_cxr.manifest(raw), tmp_path)
    assert not made.conversion.problems
    assert "MS-CXR: 2 pairs of a phrase and its boxes on 2 pictures (1,162 published)." in made.said
    boxes = made.records[one][1]["boxes"]
    assert boxes["label"] == ["Atelectasis"] * 2 and boxes["reader"] == ["", ""]
    assert boxes["phrase"] == ["Streaks of atelectasis, at the left base"] * 2
    np.testing.assert_allclose(boxes["bbox"], [(0.5, 0.5, 0.5625, 0.75), (0, 0, 0.25, 0.5)])
    split, example = made.records[two]
    assert split == "test" and example["boxes"]["phrase"] == ["mild edema"]
    np.testing.assert_allclose(example["boxes"]["bbox"], [(0.25, 0.25, 0.375, 0.75)])
    assert made.records[PICTURES[1][0]][1]["boxes"]["label"] == []


def test_odd_rows_of_ms_cxr_are_named_and_its_json_alone_is_told(raw):
    text = PHRASES.format(one=PICTURES[0][0], two="nobody") + f"{PICTURES[0][0]},Edema,a,b,1,2,3,wide,0,64,train\n"
    (raw / "MS_CXR_Local_Alignment_v1.1.0.csv").write_text(text)
    made = mimic_cxr.manifest(raw)
    assert [(problem.file, problem.kind) for problem in made.problems] == [("nobody", "box"), (PICTURES[0][0], "box")]
    assert "the metadata do not name it" in made.problems[0].reason and "'wide'" in made.problems[1].reason
    (raw / "MS_CXR_Local_Alignment_v1.1.0.csv").rename(raw / "MS_CXR_Local_Alignment_v1.1.0.json")
    made = mimic_cxr.manifest(raw)
    assert not made.has_boxes and any("MS-CXR is here as JSON alone" in remark for remark in made.remarks)
