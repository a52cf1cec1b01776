"""DICOM files as a whole: their record, the facts of their headers, and what is refused by name."""

import json

import numpy as np
import pytest
from pydicom.dataset import Dataset

from cxrjax.imaging import dicom, header, reader
from cxrjax.imaging.pixels import UnreadablePicture
from tests import dicom_files
from tests.dicom_files import noise


def read(tmp_path, array, **options):
    return dicom.read(dicom_files.write(tmp_path / "picture.dcm", array, **options))


def test_the_record_is_plain_and_has_the_facts(tmp_path):
    _, record = read(
        tmp_path,
        noise(np.uint8, 0, 255),
        ViewPosition="PA",
        ImageLaterality="L",
        PatientSex="F",
        PatientAge="057Y",
        ImagerPixelSpacing=[0.143, 0.144],
        Manufacturer="ACME",
        BurnedInAnnotation="YES",
        PresentationIntentType="FOR PROCESSING",
    )
    assert (record.projection, record.laterality, record.sex, record.age) == ("PA", "L", "F", 57)
    assert (record.pixel_spacing, record.manufacturer) == ((0.143, 0.144), "ACME")
    assert record.steps[0] == "burned-in annotation: the header says YES"
    assert "FOR PROCESSING" in record.warnings[0]
    assert json.loads(json.dumps(record._asdict()))["age"] == 57
    picture = reader.read(tmp_path / "picture.dcm")
    assert picture.header == {"view": "PA", "sex": "F", "age": 57} and picture.steps == record.steps
    _, bare = read(tmp_path, noise(np.uint8, 0, 255), Modality=None, BodyPartExamined=None)
    assert (bare.projection, bare.laterality, bare.sex, bare.age) == ("UNKNOWN", "", "", -1)
    assert (bare.pixel_spacing, bare.manufacturer, bare.warnings) == ((), "", ())
    _, oblong = read(tmp_path, noise(np.uint8, 0, 255), PixelAspectRatio=[2, 1])
    assert oblong.warnings == ("pixels are not square (PixelAspectRatio 2:1); they are kept as they are",)


@pytest.mark.parametrize(
    ("age", "years"),
    [("057Y", 57), ("57", 57), ("006M", 0), ("030M", 2), ("104W", 2), ("700D", 1)]
    + [("000Y", -1), ("414Y", -1), ("", -1), ("Y", -1), ("5 Y", -1)],
)
def test_ages(age, years):
    assert header.years(age) == years


@pytest.mark.parametrize(
    ("position", "meaning", "view"),
    [
        ("PA", "", "PA"),
        ("ap", "", "AP"),
        ("AP SUPINE", "", "AP"),
        ("LL", "", "LATERAL"),
        ("RL", "", "LATERAL"),
        ("LATERAL", "", "LATERAL"),
        ("LLO", "", "UNKNOWN"),
        ("", "postero-anterior", "PA"),
        ("", "Antero-posterior projection", "AP"),
        ("", "left lateral", "LATERAL"),
        ("", "lateral", "LATERAL"),
        ("", "Postero-anterior oblique", "UNKNOWN"),
        ("", "left lateral decubitus", "UNKNOWN"),
        ("AP", "postero-anterior", "AP"),
        ("PAAP", "", "UNKNOWN"),
    ],
)
def test_views(position, meaning, view):
    assert header.projection(position, meaning) == view


def test_the_view_code_stands_in_for_a_missing_view_position(tmp_path):
    code = Dataset()
    code.CodeMeaning = "postero-anterior"
    assert read(tmp_path, noise(np.uint8, 0, 255), ViewCodeSequence=[code]).record.projection == "PA"


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("part", ["TÓRAX", "thorax pa", "CXR", "CHST", "POITRINE", "UNDEFINED", "N/A", None])
def test_words_for_the_chest_and_for_nothing_are_admitted(tmp_path, part):
    array = noise(np.uint8, 0, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, SpecificCharacterSet="ISO_IR 100", BodyPartExamined=part)
    np.testing.assert_array_equal(dicom.read(path, bits=8).pixels, array)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    ("keyword", "word", "wanted"),
    [("BodyPartExamined", "BRUST", "brust"), ("BodyPartExamined", "HALS RÖ", "Hals Rö"), ("Modality", "RF", "RF")],
)
def test_what_the_header_calls_otherwise_can_be_admitted(tmp_path, keyword, word, wanted):
    array = noise(np.uint8, 0, 255)
    tags = {"SpecificCharacterSet": "ISO_IR 100", keyword: word}
    path = dicom_files.write(tmp_path / "a.dcm", array, **tags)
    with pytest.raises(UnreadablePicture, match=f"{keyword} is .* by --admit '?{word[:3]}"):
        dicom.read(path)
    np.testing.assert_array_equal(dicom.read(path, bits=8, admit=("DX", wanted)).pixels, array)


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({"Modality": "CT"}, "Modality is CT; radiographs have CR, DX"),
        ({"Modality": "MG"}, "Modality is MG"),
        ({"BodyPartExamined": "HAND"}, "BodyPartExamined is HAND, not the chest"),
        ({"SamplesPerPixel": 3}, "has colour .*SamplesPerPixel 3"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "has colour .*PALETTE COLOR"),
        ({"NumberOfFrames": 5}, r"several frames \(NumberOfFrames 5\)"),
        ({"Rows": None}, "header lacks Rows;"),
        ({"BitsStored": None, "HighBit": None}, "header lacks BitsStored, HighBit;"),
        ({"PhotometricInterpretation": None}, "header lacks PhotometricInterpretation"),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": 0}, "only 34 x 0 px"),
        ({"Columns": 4}, "only 4 x 40 px"),
        ({"Rows": 41}, "truncated: 1360 bytes where 34 x 41 px of 8 bits take 1394"),
        ({"Rows": 30}, "hold 1360 bytes, but 34 x 30 px of 8 bits take 1020"),
        ({"Rows": 65535, "Columns": 65535}, "declares 65535 x 65535 px .* too many"),
        ({"BitsAllocated": 32}, "BitsAllocated is 32; 8 and 16"),
        ({"BitsStored": 12}, "contradicts itself: BitsAllocated 8, BitsStored 12"),
        ({"HighBit": 5}, "contradicts itself: .*HighBit 5"),
        ({"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 255}, None),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 255}, "constant: every pixel is padding"),
    ],
)
def test_what_is_no_chest_radiograph_is_refused_by_name(tmp_path, tags, sentence):
    path = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), **tags)
    if sentence is None:
        assert dicom.read(path).record.padding
        return
    with pytest.raises(UnreadablePicture, match=sentence):
        reader.read(path)


def test_colour_is_refused(tmp_path):
    colour = np.repeat(noise(np.uint8, 0, 255)[..., None], 3, axis=2)
    with pytest.raises(UnreadablePicture, match="has colour .*RGB"):
        read(tmp_path, colour, photometric="RGB")


@pytest.mark.filterwarnings("ignore:End of file reached")
def test_files_cut_short_are_refused(tmp_path):
    data = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255)).read_bytes()
    with pytest.raises(UnreadablePicture, match="truncated: they end inside element .7FE0,0010"):
        dicom.read(data[:-1])
    with pytest.raises(UnreadablePicture, match="no pixel data"):
        dicom.read(data[: -1360 - 12])
    with pytest.raises(UnreadablePicture, match="truncated or broken"):
        dicom.read(data[:132])
    data = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), transfer_syntax="jpeg").read_bytes()
    with pytest.raises(UnreadablePicture, match="truncated: they end inside element .7FE0,0010"):
        dicom.read(data[:-1])
    with pytest.raises(UnreadablePicture, match="truncated or broken"):
        dicom.read(data[:-8])


def test_old_files_without_the_mark_are_read(tmp_path):
    array = noise(np.uint8, 0, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="implicit")
    bare = path.read_bytes()[132:]
    np.testing.assert_array_equal(reader.read(bare).pixels, array)
    without_meta = bare[12 + int.from_bytes(bare[8:12], "little") :]
    picture = reader.read(without_meta)
    np.testing.assert_array_equal(picture.pixels, array)
    assert "TransferSyntaxUID is missing" in picture.steps[-1]


def test_a_deflated_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = dicom_files.write(tmp_path / "a.dcm", np.eye(300, dtype=np.uint8), transfer_syntax="deflated")
    assert dicom.read(path).record.rows == 300
    monkeypatch.setattr(dicom, "LARGEST_INFLATED", 80_000)
    with pytest.raises(UnreadablePicture, match="hold more than 80000 bytes"):
        dicom.read(path)
