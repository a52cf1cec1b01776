"""RSNA Pneumonia: DICOM pictures, several boxes of a picture, the classes, and the three splits."""

import collections
import json

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from cxrjax.datasets import catalogue, release, rsna_pneumonia
from tests import dicom_files, official

LABELS = (
    "patientId,x,y,width,height,Target\n"
    "0004cfab-14fd-4e49-80ba-63a80b6bddd6,,,,,0\n"
    "00313ee0-9eaa-42f4-b0ab-c148ed3241cd,,,,,0\n"
    "00436515-870c-4b36-a041-de91049b9ab4,8.0,16.0,12.0,20.0,1\n"
    "00436515-870c-4b36-a041-de91049b9ab4,40.0,16.0,16.0,8.0,1\n"
)
CLASSES = (
    "patientId,class\n"
    "0004cfab-14fd-4e49-80ba-63a80b6bddd6,No Lung Opacity / Not Normal\n"
    "00313ee0-9eaa-42f4-b0ab-c148ed3241cd,Normal\n"
    "00436515-870c-4b36-a041-de91049b9ab4,Lung Opacity\n"
    "00436515-870c-4b36-a041-de91049b9ab4,Lung Opacity\n"
)
NAMES = [line.split(",")[0] for line in LABELS.splitlines()[1:4]]
NIH = dict(zip(NAMES, ("00028173_002.png", "00000013_004.png", "00000013_011.png"), strict=True))
NO_PATIENTS = "every picture counts as its own patient"

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR AS")  # the release writes ages as "51"


@pytest.fixture
def raw(tmp_path):
    """Three labelled pictures, the last one brighter in its second box, and an unlabelled one."""
    raw = tmp_path / "rsna"
    for folder in ("stage_2_train_images", "stage_2_test_images"):
        (raw / folder).mkdir(parents=True)
    pictures = official.pictures(4)
    pictures[2] = np.minimum(pictures[2], 200)
    pictures[2][16:24, 40:56] = 255
    tags = [
        {"PatientAge": "51", "PatientSex": "F", "ViewPosition": "PA"},
        {},
        {"PatientSex": "M", "ViewPosition": "AP"},
    ]
    for name, picture, said in zip(NAMES, pictures, tags, strict=False):
        dicom_files.write(
            raw / "stage_2_train_images" / f"{name}.dcm", picture, transfer_syntax="jpeg", PatientID=name, **said
        )
    dicom_files.write(raw / "stage_2_test_images" / "0000a175.dcm", pictures[3], transfer_syntax="jpeg")
    (raw / "stage_2_train_labels.csv").write_text(LABELS)
    (raw / "stage_2_detailed_class_info.csv").write_text(CLASSES)
    return raw


def write_nih_names(raw):
    entries = [
        {"subset_img_id": name, "img_id": picture, "orig_labels": ["No Finding"], "StudyInstanceUID": f"1.2.{number}"}
        for number, (name, picture) in enumerate(NIH.items())
    ]
    (raw / rsna_pneumonia.MAPPING).write_text(json.dumps(entries))


def test_every_field_comes_back(raw, tmp_path):
    made = rsna_pneumonia.manifest(raw)
    assert made.problems == ()
    done = official.convert(made, tmp_path)
    assert done.conversion.problems == () and set(done.records) == set(NAMES)
    present = {
        name: [label for label, code in zip(made.label_names, record["labels"], strict=True) if code == 1]
        for name, (_, record) in done.records.items()
    }
    assert present == {
        NAMES[0]: ["No Lung Opacity / Not Normal"],
        NAMES[1]: ["Normal"],
        NAMES[2]: ["Pneumonia", "Lung Opacity"],
    }
    first, _, last = (done.records[name][1] for name in NAMES)
    assert (first["view"], first["sex"], first["age"]) == ("PA", "F", 51)  # from the header
    assert (last["view"], last["sex"], last["age"]) == ("AP", "M", -1)
    assert first["patient_id"] == first["study_id"] == NAMES[0] and first["same_picture"] == ""
    assert first["boxes"]["label"] == []
    assert last["boxes"]["label"] == ["Lung Opacity"] * 2
    np.testing.assert_allclose(last["boxes"]["bbox"], np.array([(16, 8, 36, 20), (16, 40, 24, 56)]) / 64)
    bright = official.pixels(last) > 240
    assert bright[8:12, 20:28].all() and bright.sum() == 32
    assert "1 pictures, as those of stage_2_test_images, have no labels and were left out." in made.remarks
    assert any(NO_PATIENTS in remark for remark in made.remarks)


def test_rsna_s_table_gives_nih_pictures_and_patients(raw, tmp_path):
    write_nih_names(raw)
    done = official.convert(rsna_pneumonia.manifest(raw), tmp_path)
    assert NO_PATIENTS not in done.said
    patients = {name: record["patient_id"] for name, (_, record) in done.records.items()}
    assert patients == {NAMES[0]: "28173", NAMES[1]: "13", NAMES[2]: "13"}
    split, record = done.records[NAMES[1]]
    assert split == done.records[NAMES[2]][0]
    assert (record["same_picture"], record["same_patient"]) == ("chestxray14:00000013_004.png", "chestxray14:13")


def test_mgca_splits_are_those_of_scikit_learn():
    names = [f"{number:05x}" for number in range(26684)]
    sizes = {"mgca_classification": (18678, 4003, 4003), "mgca_detection": (16010, 5337, 5337)}
    for split, held_out in (("mgca_classification", 0.15 * 2), ("mgca_detection", 5337 * 2)):
        parts = rsna_pneumonia.mgca_split(names, split)
        _, rest = train_test_split(names, test_size=held_out, random_state=0)
        test, val = train_test_split(rest, test_size=0.5, random_state=0)
        assert {name for name, part in parts.items() if part == "test"} == set(test)
        assert {name for name, part in parts.items() if part == "val"} == set(val)
        counts = collections.Counter(parts.values())
        assert (counts["train"], counts["val"], counts["test"]) == sizes[split]


def test_mgca_splits_depend_on_the_table_only(raw):
    write_nih_names(raw)
    whole = catalogue.manifest("rsna_pneumonia", raw, split="mgca_classification")
    assert [row.patient_id for row in whole.rows] == NAMES  # by picture, as there
    parts = {row.image_id: row.split for row in whole.rows}
    assert parts == rsna_pneumonia.mgca_split(NAMES, "mgca_classification")
    assert ("1 NIH patients are in several parts" in " ".join(whole.remarks)) == (parts[NAMES[1]] != parts[NAMES[2]])
    (raw / "stage_2_train_images" / f"{NAMES[0]}.dcm").unlink()
    rows = rsna_pneumonia.manifest(raw, split="mgca_classification").rows
    assert {row.image_id: row.split for row in rows} == {name: parts[name] for name in NAMES[1:]}
    with pytest.raises(ValueError, match="'mgca_detection' holds out 10674 pictures, but the table names only 3"):
        rsna_pneumonia.manifest(raw, split="mgca_detection")
    with pytest.raises(ValueError, match="split='mgca' is no choice.*patient, mgca_classification, mgca_detection"):
        catalogue.manifest("rsna_pneumonia", raw, split="mgca")


def test_half_a_download_and_odd_rows_are_reported(raw, tmp_path):
    (raw / "stage_2_train_images" / f"{NAMES[0]}.dcm").unlink()
    table = raw / "stage_2_train_labels.csv"
    table.write_text(table.read_text().replace("40.0,16.0", "40.0,") + f"{NAMES[1]},1,2,3,4,1\n")
    made = rsna_pneumonia.manifest(raw)
    said = {(problem.kind, problem.file): problem.reason for problem in made.problems}
    assert set(said) == {("missing", f"{NAMES[0]}.dcm"), ("box", NAMES[2]), ("row", f"{NAMES[1]}.dcm")}
    assert "'0 and 1'" in said["row", f"{NAMES[1]}.dcm"] and "not four numbers" in said["box", NAMES[2]]
    assert "1 of the 3 pictures that the tables name are missing" in made.remarks[0]
    done = official.convert(made, tmp_path, allow_bad=True)
    assert set(done.records) == {NAMES[2]} and len(done.records[NAMES[2]][1]["boxes"]["label"]) == 1


def test_other_folders_get_their_sentence(raw, tmp_path):
    (raw / rsna_pneumonia.MAPPING).write_text('{"subset_img_id": "a"}')
    with pytest.raises(release.LayoutError, match="not RSNA's table of NIH names, a list of objects"):
        rsna_pneumonia.manifest(raw)
    (raw / rsna_pneumonia.MAPPING).unlink()
    (raw / "stage_2_detailed_class_info.csv").unlink()
    with pytest.raises(release.LayoutError, match="no stage_2_detailed_class_info.csv.*kaggle.com/c/rsna"):
        rsna_pneumonia.manifest(raw)
    (raw / "stage_2_detailed_class_info.csv").write_text(CLASSES)
    (raw / "stage_2_train_images").rename(raw / "images")
    with pytest.raises(release.LayoutError, match=r"folder 'stage_2_train_images' below .* has no \.dcm file"):
        rsna_pneumonia.manifest(raw)
    with pytest.raises(release.LayoutError, match="has no stage_2_train_labels.csv"):
        rsna_pneumonia.manifest(raw / "images")
    with pytest.raises(release.LayoutError, match="is a file, not a folder"):
        rsna_pneumonia.manifest(raw / "stage_2_train_labels.csv")
