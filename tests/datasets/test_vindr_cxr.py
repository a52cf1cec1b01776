"""VinDr-CXR in both official layouts, as 12-bit MONOCHROME1 DICOM, converted and read back."""

import csv
import shutil

import numpy as np
import pytest

from cxrjax.datasets import schema, vindr_cxr
from cxrjax.datasets.manifest import Box
from cxrjax.datasets.release import LayoutError, is_validation
from cxrjax.datasets.table import TableError
from tests import dicom_files, official

KAGGLE_HEAD = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
PHYSIONET = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other diseases,No finding"
).split(",")
A, B, C, D = (f"{number:032x}" for number in (10, 11, 12, 13))
SQUARE = (60, 20, 84, 44)  # x_min, y_min, x_max, y_max of a bright square in every 96 x 64 picture


def write_dicom(path, picture, **tags):
    """Stores what is to be seen as MONOCHROME1: dark values are bright."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture.copy()
    left, top, right, bottom = SQUARE
    picture[top:bottom, left:right] = 255
    stored = (4095 - 16 * picture.astype(np.uint16)).astype(np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    dicom_files.write(path, stored, photometric="MONOCHROME1", bits_stored=12, **window, **tags)


def write_csv(path, head, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head.split(","), *rows])


KAGGLE_ROWS = [
    *([A, "No finding", 14, reader, "", "", "", ""] for reader in ("R11", "R7", "R10")),
    [B, "Nodule/Mass", 8, "R9", 58, 18, 82, 42],
    [B, "Nodule/Mass", 8, "R8", 62, 22, 86, 46],
    [B, "Calcification", 2, "R9", 5, 5, 15, 15],
    [B, "Calcification", 2, "R10", 70, 50, 80, 60],
    [B, "ILD", 5, "R10", 1, 1, 30, 60],
    [C, "No finding", 14, "R9", "", "", "", ""],
    [C, "Cardiomegaly", 3, "R8", 30, 30, 70, 60],
    [C, "Aortic enlargement", 0, "R10", 40, 5, 60, 30],
]


@pytest.fixture
def kaggle(tmp_path):
    """Three pictures of the train part, each read by three, and one of the test part."""
    raw = tmp_path / "vinbigdata"
    for image_id, picture in zip((A, B, C), official.pictures(3, 64, 96), strict=True):
        write_dicom(raw / "train" / f"{image_id}.dicom", picture, PatientSex="F", PatientAge="057Y")
    write_dicom(raw / "test" / f"{D}.dicom", official.pictures(4, 64, 96)[3])
    write_csv(raw / "train.csv", KAGGLE_HEAD, KAGGLE_ROWS)
    return raw


@pytest.fixture
def physionet(tmp_path):
    """Two train pictures read by three, one test picture with the consensus."""
    raw = tmp_path / "vindr-cxr" / "1.0.0"
    for image_id, picture in zip((A, B, D), official.pictures(3, 64, 96), strict=True):
        write_dicom(raw / ("test" if image_id == D else "train") / f"{image_id}.dicom", picture)

    def labels(*present):
        return [int(name in present) for name in PHYSIONET]

    head = ",".join(["image_id", "rad_id", *PHYSIONET])
    train = [[A, reader, *labels("No finding")] for reader in ("R1", "R2", "R3")]
    train += [
        [B, "R4", *labels("Rib fracture", "COPD")],
        [B, "R5", *labels("COPD", "Pneumonia", "Other diseases")],
        [B, "R6", *labels("Rib fracture", "Other diseases")],
    ]
    write_csv(raw / "annotations" / "image_labels_train.csv", head, train)
    consensus = ",".join(["image_id", *PHYSIONET]).replace("Other diseases", "Other disease")
    write_csv(raw / "annotations" / "image_labels_test.csv", consensus, [[D, *labels("Edema", "Other diseases")]])
    write_csv(
        raw / "annotations" / "annotations_train.csv",
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
        [
            [A, "R1", "No finding", "", "", "", ""],
            [B, "R4", "Rib fracture", *SQUARE],
            [B, "R4", "COPD", "", "", "", ""],
            [B, "R6", "Rib fracture", *SQUARE],
        ],
    )
    write_csv(
        raw / "annotations" / "annotations_test.csv",
        "image_id,class_name,x_min,y_min,x_max,y_max",
        [[D, "Edema", *SQUARE]],
    )
    return raw


def present(names, labels):
    return {name for name, code in zip(names, labels, strict=True) if code == schema.PRESENT}


def test_kaggle_comes_back_as_it_was_written(kaggle, tmp_path):
    manifest = vindr_cxr.manifest(kaggle)
    assert manifest.label_names == vindr_cxr.KAGGLE_LABELS
    converted = official.convert(manifest, tmp_path)
    assert set(converted.records) == {A, B, C}, converted.said
    expected = {A: {"No finding"}, B: {"Nodule/Mass", "Calcification"}, C: set()}
    for image_id, (split, example) in converted.records.items():
        assert present(manifest.label_names, example["labels"]) == expected[image_id]
        assert split == schema.assign_split("vindr_cxr", image_id)
        assert example["patient_id"] == example["study_id"] == image_id
        assert (example["view"], example["sex"], example["age"]) == ("PA", "F", 57)
    boxes = converted.records[B][1]["boxes"]
    assert list(boxes["reader"]) == ["", "R9", "R8", "R9", "R10", "R10"]
    assert list(boxes["label"])[0] == "Nodule/Mass"
    np.testing.assert_allclose(boxes["bbox"][0], [20 / 64, 60 / 96, 44 / 64, 84 / 96], atol=1e-6)
    np.testing.assert_allclose(boxes["bbox"][1], [18 / 64, 58 / 96, 42 / 64, 82 / 96], atol=1e-6)
    assert len(converted.records[A][1]["boxes"]["bbox"]) == 0


def test_the_bright_square_lies_under_its_box(kaggle, tmp_path):
    example = official.convert(vindr_cxr.manifest(kaggle), tmp_path).records[B][1]
    image = official.pixels(example).astype(float)
    assert image.shape == (32, 48)
    top, left, bottom, right = (example["boxes"]["bbox"][0] * [32, 48, 32, 48]).round().astype(int)
    inside = np.zeros(image.shape, bool)
    inside[top:bottom, left:right] = True
    assert image[inside].min() > 250
    assert image[~inside].max() < 250


def test_readers_who_agree_on_the_finding_and_not_the_place_give_a_label_without_a_box(kaggle):
    row = next(row for row in vindr_cxr.manifest(kaggle).rows if row.image_id == B)
    assert [box.label for box in row.boxes if not box.reader] == ["Nodule/Mass"]
    assert Box("ILD", 1, 1, 29, 59, "R10") in row.boxes


def test_kaggle_says_what_is_left_out(kaggle):
    manifest = vindr_cxr.manifest(kaggle)
    assert manifest.problems == ()
    assert manifest.published == {"pictures": 15000}
    assert "its own patient" in manifest.remarks[0]
    assert manifest.remarks[1:] == ("The 1 pictures in test/ have no labels in this release and are left out.",)


def test_physionet_comes_back_as_it_was_written(physionet, tmp_path):
    manifest = vindr_cxr.manifest(physionet)
    assert manifest.problems == ()
    assert manifest.label_names == tuple(PHYSIONET)
    converted = official.convert(manifest, tmp_path)
    expected = {A: {"No finding"}, B: {"Rib fracture", "COPD", "Other diseases"}, D: {"Edema", "Other diseases"}}
    for image_id, labels in expected.items():
        split, example = converted.records[image_id]
        assert present(manifest.label_names, example["labels"]) == labels
        cut = "val" if is_validation("vindr_cxr", image_id) else "train"
        assert split == ("test" if image_id == D else cut)
        assert (example["sex"], example["age"]) == ("", -1)
    for image_id, readers in ((B, ["", "R4", "R6"]), (D, [""])):
        boxes = converted.records[image_id][1]["boxes"]
        assert list(boxes["reader"]) == readers
        np.testing.assert_allclose(boxes["bbox"][0], [20 / 64, 60 / 96, 44 / 64, 84 / 96], atol=1e-6)


def test_validation_is_cut_from_physionets_train_part():
    parts = [is_validation("vindr_cxr", f"{number:032x}") for number in range(2000)]
    assert 0.08 < np.mean(parts) < 0.12


def test_half_a_download_is_named_and_counted(kaggle, tmp_path):
    (kaggle / "train" / f"{B}.dicom").unlink()
    manifest = vindr_cxr.manifest(kaggle)
    assert [(problem.file, problem.kind) for problem in manifest.problems] == [(B, "missing")]
    assert "1 of the 3 pictures that the tables name are missing" in manifest.remarks[-1]
    converted = official.convert(manifest, tmp_path)
    assert converted.conversion.directory is None
    assert B in converted.said
    assert set(official.convert(manifest, tmp_path, allow_bad=True).records) == {A, C}


def test_bad_rows_are_named(kaggle):
    bad = [[B, "Pneumonia", 3, "R9", 1, 1, 9, 9], [B, "ILD", 5, "R9", 9, 9, 1, 1], [B, "ILD", 5, "R9", "x", 9, 1, 1]]
    write_csv(kaggle / "train.csv", KAGGLE_HEAD, KAGGLE_ROWS + bad)
    problems = vindr_cxr.manifest(kaggle).problems
    assert [problem.kind for problem in problems] == ["row", "box", "box"]
    assert "the class 'Pneumonia', which is not known" in problems[0].reason
    assert "A box of ILD in train.csv has no area: 9, 9, 1, 1." == problems[1].reason


def test_boxes_of_unknown_pictures_are_named(physionet):
    table = physionet / "annotations" / "annotations_test.csv"
    table.write_text(table.read_text() + f"{C},Edema,1,1,9,9\n")
    assert [(problem.file, problem.kind) for problem in vindr_cxr.manifest(physionet).problems] == [(C, "box")]


def test_missing_tables_and_other_folders_get_their_sentences(kaggle, physionet, tmp_path):
    (physionet / "annotations" / "annotations_test.csv").unlink()
    with pytest.raises(LayoutError, match=r"has no annotations_test.csv \(plain or .gz\); tables there: annotations/"):
        vindr_cxr.manifest(physionet)
    with pytest.raises(LayoutError, match="is a file, not a folder"):
        vindr_cxr.manifest(kaggle / "train.csv")
    shutil.rmtree(kaggle / "train")
    with pytest.raises(LayoutError, match=r"The folder 'train' below .* has no .dicom or .dcm file; it holds .*dicom"):
        vindr_cxr.manifest(kaggle)
    (kaggle / "train.csv").unlink()
    with pytest.raises(LayoutError, match="has no image_labels_train.csv or train.csv.*physionet.org/content/vindr"):
        vindr_cxr.manifest(kaggle)
    (kaggle / "train.csv").write_text("image_name,annotation\n1.jpg,\n")
    with pytest.raises(TableError, match="no column 'image_id'; its columns are: image_name, annotation"):
        vindr_cxr.manifest(kaggle)
