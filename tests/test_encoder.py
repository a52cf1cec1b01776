"""A trained encoder in Python: all forms of a picture give one vector, and what is no picture is told in a sentence."""

import cv2
import numpy as np
import pydicom
import pytest

import cxrjax
from cxrjax.imaging import reader
from tests import dicom_files, runs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "spcl"
    runs.write(folder, runs.config())
    return cxrjax.load(folder)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 40, 32), dtype=np.uint8)


def test_every_form_of_a_picture_gives_its_vector(encoder, pictures, tmp_path):
    vectors = encoder.embed(pictures)
    assert vectors.shape == (3, 64) and vectors.dtype == np.float32
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(".png", pictures[0])[1].tobytes())
    for form in (pictures[0], pictures[:1, ..., None], path, [str(path)], [pictures[0]]):
        np.testing.assert_allclose(encoder.embed(form), vectors[:1], atol=1e-5)
    for kind, value_range in ((np.uint16, (0, 1000)), (np.float64, (-1.0, 1.0)), (np.int32, (-50, 205))):
        low, high = value_range
        numbers = (low + pictures / 255 * (high - low)).round(0 if kind != np.float64 else 9).astype(kind)
        np.testing.assert_allclose(encoder.embed(numbers, value_range=value_range), vectors, atol=1e-2)


def test_a_dicom_dataset_is_read_as_its_file(encoder, tmp_path):
    deep = np.random.default_rng(1).integers(0, 4096, (40, 40), dtype=np.uint16)
    path = dicom_files.write(tmp_path / "a.dcm", deep, bits_stored=12, photometric="MONOCHROME1")
    of_file = encoder.embed(path)
    np.testing.assert_allclose(encoder.embed([pydicom.dcmread(path)]), of_file, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(reader.read(path).pixels), of_file, atol=1e-6)


def test_patches_and_attention_have_the_grid(encoder, pictures):
    patches = encoder.embed(pictures, patches=True, batch_size=2)
    assert patches.shape == (3, 8, 8, 64)
    np.testing.assert_allclose(patches[2:], encoder.embed(pictures[2], patches=True), atol=1e-5)
    looked = encoder.attention(pictures)
    assert looked.shape == (3, 8, 8) and looked.min() > 0 and (looked.sum((1, 2)) < 1).all()


@pytest.mark.parametrize(
    ("images", "named", "said"),
    [
        ([], {}, "no picture was given: the batch is empty"),
        (np.zeros((0, 32, 32), np.uint8), {}, "the batch is empty"),
        (np.zeros((64, 64, 3), np.uint8), {}, r"the shape is \(64, 64, 3\): looks like colour"),
        (np.zeros((2, 64, 64, 3), np.uint8), {}, "looks like colour"),
        ([np.zeros((64, 64, 3), np.uint8)], {}, "picture 0: the shape .* looks like colour"),
        (np.zeros((2, 2, 2, 64, 64), np.uint8), {}, "give a path, a DICOM dataset, h w, b h w"),
        (np.zeros((2, 64, 64)), {}, "picture 0: pixels are float64; give uint8, uint16, or numbers with value_range="),
        (np.zeros((64, 64), bool), {"value_range": (0, 1)}, "pixels are bool"),
        (np.full((64, 64), np.nan), {"value_range": (0, 1)}, "4096 pixels are NaN or infinite"),
        (np.zeros((64, 64)), {"value_range": (1, 0)}, r"value_range is \(1, 0\): black must be below white"),
        (np.zeros((64, 64), np.uint16), {}, "the picture is constant: every pixel is 0"),
        (np.zeros((64, 4), np.uint8), {}, "only 4 x 64 px"),
        (["there-is-none.png"], {}, r"picture 0 \(there-is-none.png\): The file does not exist"),
    ],
)
def test_what_is_no_picture_is_told(encoder, images, named, said):
    with pytest.raises(ValueError, match=said):
        encoder.embed(images, **named)


def test_the_package_is_light_and_says_what_it_offers():
    import subprocess
    import sys

    code = "import sys, cxrjax; print({'jax', 'numpy', 'tensorflow_datasets'} & set(sys.modules)); cxrjax.laod"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"
    assert "cxrjax has no 'laod'; it offers Encoder, config, load, make_set, pretrain" in done.stderr
