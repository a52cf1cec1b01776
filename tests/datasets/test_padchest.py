"""A small PadChest in the official layout: 16 bits, Spanish stems, labels as lists in text; and broken downloads."""

import csv
import gzip
import io
import json
import zipfile

import cv2
import numpy as np
import pytest

from cxrjax.datasets import catalogue, padchest, schema
from cxrjax.datasets.release import LayoutError
from cxrjax.datasets.table import TableError
from cxrjax.input import converted_sets
from tests import official

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEAD = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
).split(",")
LABELS = ("COPD signs", "infiltrates", "normal", "pneumonia")
ROWS = [
    # image, folder, study, patient, born, sex, projection, method, labels
    ("a_1.png", "0", "s1", "p1", "1993.0", "F", "PA", "Physician", "['infiltrates', ' pneumonia']"),
    ("a_2.png", "0", "s1", "p1", "1993.0", "F", "L", "Physician", "['infiltrates', ' pneumonia']"),
    ("b.png", "54", "s2", "p2", "1950", "M", "AP_horizontal", "RNN_model", "['normal']"),
    ("c.png", "54", "s3", "p3", "", "O", "AP", "RNN_model", "['COPD signs', 'unchanged', nan]"),
    ("d.png", "7", "s4", "p4", "2016.0", "None", "UNK", "RNN_model", ""),
    ("e.png", "7", "s5", "p5", "1950.0", "F", "PA", "RNN_model", "['exclude']"),
    ("f.png", "7", "s6", "p5", "1950.0", "F", "COSTAL", "RNN_model", "['fracture']"),
    ("g.png", "7", "s7", "p5", "1950.0", "F", "EXCLUDE", "RNN_model", "['exclude']"),
]
REPORT = "dibuj invent . no hay nad que ver ."


def write_table(raw, rows=ROWS, head=HEAD, name=f"{TABLE}.gz"):
    text = io.StringIO()
    writer = csv.DictWriter(text, head, restval="")
    writer.writeheader()
    for number, (image, folder, study, patient, born, sex, projection, method, labels) in enumerate(rows):
        cells = {
            **{"": number, "ImageID": image, "ImageDir": folder, "StudyDate_DICOM": 20150622, "StudyID": study},
            **{"PatientID": patient, "PatientBirth": born, "PatientSex_DICOM": sex, "Projection": projection},
            **{"PhotometricInterpretation_DICOM": "MONOCHROME1" if image == "b.png" else "MONOCHROME2"},
            **{
                "MethodLabel": method,
                "Labels": labels,
                "Report": REPORT,
                "LabelsLocalizationsBySentence": "['loc', 1]",
            },
        }
        known = {name.lower(): name for name in head}
        writer.writerow({known[name.lower()]: cell for name, cell in cells.items()})
    data = text.getvalue().encode()
    (raw / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "raw"
    for pixels, (image, folder, *_) in zip(official.pictures(len(ROWS)), ROWS, strict=True):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        scale = 16 if image == "a_1.png" else 257  # 12 bits in 16, and all 16
        cv2.imwrite(str(raw / folder / image), pixels.astype(np.uint16) * scale)
    write_table(raw)
    return raw


def labels_with(rest, *present):
    return [schema.PRESENT if name in present else rest for name in LABELS]


def test_every_field_comes_back(raw, tmp_path):
    made = official.convert(padchest.manifest(raw), tmp_path)
    assert not made.conversion.problems and set(made.records) == {
        "a_1.png",
        "a_2.png",
        "b.png",
        "c.png",
        "d.png",
        "e.png",
    }
    assert converted_sets.open_set(made.conversion.directory).label_names == LABELS
    examples = {name.removesuffix(".png"): example for name, (_, example) in made.records.items()}
    for image, _, study, patient, *_ in ROWS[:6]:
        split, example = made.records[image]
        assert split == schema.assign_split("padchest", patient)
        assert (example["patient_id"], example["study_id"]) == (patient, study)
        assert example["report"] == {"findings": "", "impression": "", "text": REPORT}
    projections = {"a_1": "PA", "a_2": "LATERAL", "b": "AP", "c": "AP", "d": "UNKNOWN", "e": "PA"}
    assert {name: example["view"] for name, example in examples.items()} == projections
    people = {"a_1": ("F", 22), "a_2": ("F", 22), "b": ("M", 65), "c": ("", -1), "d": ("", -1), "e": ("F", 65)}
    assert {name: (example["sex"], example["age"]) for name, example in examples.items()} == people
    absent, unsaid = schema.ABSENT, schema.NOT_MENTIONED
    assert {name: list(example["labels"]) for name, example in examples.items()} == {
        "a_1": labels_with(absent, "infiltrates", "pneumonia"),
        "a_2": labels_with(absent, "infiltrates", "pneumonia"),
        "b": labels_with(absent, "normal"),
        "c": labels_with(unsaid, "COPD signs"),
        "d": labels_with(unsaid),
        "e": labels_with(unsaid),
    }
    assert "Left out, pictures of the table: COSTAL (1), EXCLUDE (1)." in made.said
    assert "Labelled by, pictures of the table: Physician (2), RNN_model (6)." in made.said
    assert "Without a known projection, pictures of the table: UNK (1)." in made.said
    assert "1 pictures of the table were MONOCHROME1" in made.said and "160868" in made.conversion.counts


def test_pictures_of_twelve_and_of_sixteen_bits_are_equally_bright(raw, tmp_path):
    made = official.convert(padchest.manifest(raw), tmp_path)
    expected = cv2.resize(official.pictures(1)[0], (32, 32), interpolation=cv2.INTER_AREA).astype(float)
    dark = official.pixels(made.records["a_1.png"][1]).astype(float)
    full = official.pixels(made.records["a_2.png"][1]).astype(float)
    assert np.corrcoef(dark.ravel(), expected.ravel())[0, 1] > 0.99
    assert abs(dark.mean() - full.mean()) < 20 and dark.max() > 200


def test_a_plain_table_with_other_capitals_and_order_beside_one_folder_of_pictures_is_the_same(raw):
    expected = padchest.manifest(raw)
    for picture in raw.rglob("*/*.png"):
        picture.rename(raw / picture.name)
    (raw / f"{TABLE}.gz").unlink()
    write_table(raw, head=[name.upper() for name in HEAD[::-1]], name=TABLE)
    made = padchest.manifest(raw)
    assert [row._replace(file=None) for row in made.rows] == [row._replace(file=None) for row in expected.rows]
    assert made.label_names == expected.label_names and not made.problems


def test_broken_rows_and_pictures_are_named(raw, tmp_path):
    (raw / "54" / "c.png").unlink()
    (raw / "7" / "g.png").unlink()
    (raw / "54" / "b.png").write_bytes((raw / "54" / "b.png").read_bytes()[:900])
    rows = [list(row) for row in ROWS]
    rows[4][3] = ""
    rows[5][8] = "['half a list"
    rows.append(["h.png", "3", "s8", "p8", "1950", "M", "PA", "Physician", "{'mass': 1}"])
    write_table(raw, rows)
    made = official.convert(padchest.manifest(raw), tmp_path, allow_bad=True)
    found = {(problem.file.removeprefix(f"{raw}/"), problem.kind) for problem in made.conversion.problems}
    assert found == {
        ("54/c.png", "missing"),
        ("54/b.png", "picture"),
        ("d.png", "row"),
        ("e.png", "row"),
        ("h.png", "row"),
        ("3/h.png", "missing"),
    }
    assert "2 of the 7 pictures that the tables name are missing" in made.said
    assert set(made.records) == {"a_1.png", "a_2.png", "e.png"}
    assert set(made.records["e.png"][1]["labels"]) == {schema.NOT_MENTIONED}


def test_other_folders_are_refused(raw, tmp_path):
    (raw / f"{TABLE}.gz").rename(raw / "labels.csv.gz")
    with pytest.raises(LayoutError, match=r"has no PADCHEST.*csv .*tables there: labels.csv.gz.*bimcv.cipf.es"):
        padchest.manifest(raw)
    write_table(raw, head=[name for name in HEAD if name != "Projection"] + ["View"], rows=[])
    with pytest.raises(TableError, match="has no rows"):
        padchest.manifest(raw)
    (raw / f"{TABLE}.gz").write_bytes(gzip.compress(b",ImageID,Labels\n0,a_1.png,[]\n"))
    with pytest.raises(TableError, match="has no column 'Projection'"):
        padchest.manifest(raw)
    with pytest.raises(LayoutError, match="is a file, not a folder"):
        padchest.manifest(raw / f"{TABLE}.gz")
    packed = tmp_path / "packed"
    packed.mkdir()
    write_table(packed)
    with zipfile.ZipFile(packed / "0.zip", "w") as archive:
        archive.write(raw / "0" / "a_1.png", "a_1.png")
    with pytest.raises(LayoutError, match="has no .png file; .*unpack 0.zip first"):
        padchest.manifest(packed)


def test_the_folder_of_the_table_tells_two_files_of_one_name_apart(raw):
    (raw / "54" / "a_1.png").write_bytes((raw / "0" / "a_1.png").read_bytes())
    write_table(raw, [("a_1.png", "54", *ROWS[0][2:]), *ROWS[1:]])
    files = {row.image_id: row.file for row in padchest.manifest(raw).rows}
    assert files["a_1.png"] == raw / "54" / "a_1.png" and files["a_2.png"] == raw / "0" / "a_2.png"


def grounded(image, **finding):
    return {"StudyID": "s", "ImageID": image, "findings": [finding]}


REPORTS = [
    {
        "ImageID": "a_1.png",
        "findings": [
            {
                "sentence_en": "Infiltrates in the right base.",
                "sentence_es": "Infiltrados en la base derecha.",
                "abnormal": True,
                "boxes": [[0.25, 0.5, 0.5, 0.75], [0.0, 0.0, 1.0, 0.5]],
                "extra_boxes": [[0.25, 0.5, 0.75, 1.0]],
                "labels": ["infiltrates", "pneumonia"],
            },
            {"sentence_en": "No effusion.", "sentence_es": "Sin derrame.", "abnormal": False},
        ],
    },
    grounded("b.png", sentence_en="Normal.", sentence_es="Normal.", boxes=[], extra_boxes=None, labels=None),
]
SPLITS = (
    "StudyID,ImageID,label,split,PatientID\ns1,a_1.png,x,validation,p1\ns1,a_1.png,y,validation,p1\ns2,b.png,,test,p2\n"
)


def ground(raw, reports=REPORTS, splits=SPLITS):
    (raw / "grounded_reports_20240819.json").write_text(json.dumps(reports))
    if splits:
        (raw / "master_table.csv").write_text(splits)


@pytest.mark.parametrize(
    ("language", "sentence"), [("en", "Infiltrates in the right base."), ("es", "Infiltrados en la base derecha.")]
)
def test_sentences_of_padchest_gr_come_back_with_their_boxes_and_split(raw, tmp_path, language, sentence):
    ground(raw)
    made = official.convert(catalogue.manifest("padchest", raw, phrases=language), tmp_path)
    assert not made.conversion.problems
    assert "PadChest-GR: 1 sentences with boxes on 1 pictures." in made.said
    split, example = made.records["a_1.png"]
    assert split == made.records["a_2.png"][0] == "val" and made.records["b.png"][0] == "test"
    assert made.records["c.png"][0] == schema.assign_split("padchest", "p3")
    boxes = example["boxes"]
    assert boxes["phrase"] == [sentence] * 3 and boxes["label"] == ["infiltrates|pneumonia"] * 3
    assert boxes["reader"] == ["", "", "second"]
    np.testing.assert_allclose(boxes["bbox"], [(0.5, 0.25, 0.75, 0.5), (0, 0, 0.5, 1), (0.5, 0.25, 1, 0.75)])
    assert made.records["b.png"][1]["boxes"]["label"] == []


def test_odd_boxes_and_splits_of_padchest_gr_are_named(raw):
    reports = [
        grounded("nobody.png", sentence_en="a", boxes=[[0, 0, 1, 1]]),
        grounded("b.png", sentence_en="pixels", boxes=[[0, 0, 100, 200]]),
        grounded("c.png", sentence_en="three", boxes=[[0, 0, 1]]),
    ]
    splits = SPLITS + "s3,c.png,,benchmark,p3\ns1,a_1.png,,train,p1\n"
    ground(raw, reports, splits)
    made = padchest.manifest(raw)
    assert sorted((problem.file, problem.kind) for problem in made.problems) == [
        ("b.png", "box"),
        ("c.png", "box"),
        ("nobody.png", "box"),
        ("p1", "row"),
        ("p3", "row"),
    ]
    assert not any(row.boxes for row in made.rows)
    (raw / "master_table.csv").unlink()
    assert any("master_table.csv is not here" in remark for remark in padchest.manifest(raw).remarks)
    for reports in ({"a": 1}, [{"ImageID": "a_1.png"}], [grounded("a_1.png", boxes=[])]):
        ground(raw, reports)
        with pytest.raises(LayoutError, match="no list of studies with ImageID and findings"):
            padchest.manifest(raw)
