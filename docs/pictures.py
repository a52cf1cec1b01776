"""Makes pictures of these pages: what a wrong step of reading DICOM does, and what each method sees.

    python docs/pictures.py dicom       docs/images/dicom/*.webp: right on the left, wrong on the right
    python docs/pictures.py sees        docs/images/sees/*.webp: the views of one phantom, a picture for each method

They are small WebP files, without letters and with nothing between the parts, so that any background suits them.
tests/test_pictures.py makes those of DICOM again and compares.
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

import cxrjax
from cxrjax import main, methods, rng, train
from cxrjax.drawing import panels
from cxrjax.imaging import dicom
from cxrjax.input import pipeline
from cxrjax.phantom import phantom_set, study

IMAGES = Path(__file__).parent / "images"
SIDE = 180
GAP = 6
FRAME = (128, 128, 128, 255)
OF_WEIGHTS = ("reconstructed", "guesses", "restored", "where a word is seen")
"""Rows of `Method.look` that show what a network makes of a picture, and not what it gets."""

HEADS = ("detect", "segment")  # see the pictures as they are

LOW, HIGH, LEVELS = 1200, 1800, 4096
"""The stored values of the thinnest and the thickest part, of 12 bits."""
FAINT = 160
"""Values from black to white of a window that is narrower."""


def phantom(side: int = SIDE) -> np.ndarray:
    """Brightness h w of a frontal phantom, 0 to 1, bones white, in more than 256 levels."""
    image = study.make_study(3, 2, side).radiographs[0].image
    return cv2.GaussianBlur(image.astype(np.float32) / 255, (0, 0), 0.7)


def header(pixels: np.ndarray, **elements) -> Dataset:
    """A DICOM file of stored values h w uint16 of 12 bits, with further elements."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uid.generate_uid(entropy_srcs=["phantom"])
    made.Modality, made.BodyPartExamined, made.PatientID = "DX", "CHEST", "1"
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.PixelData = pixels.astype("<u2").tobytes()
    made["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def shown(made: Dataset) -> np.ndarray:
    """The picture as cxrjax reads it, h w uint8."""
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return dicom.read(file.getvalue(), bits=8).pixels


def windowed(values: np.ndarray, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """Values through a window, h w uint8."""
    return np.uint8(np.clip((values - low) / (high - low), 0, 1) * 255 + 0.5)


def s_curve() -> Dataset:
    """A VOI LUT of the values LOW to HIGH, as film has it: steep in the middle."""
    x = np.linspace(-1, 1, HIGH - LOW)
    table = Dataset()
    table.LUTDescriptor = [len(x), LOW, 16]
    table.LUTData = np.uint16(65535 * (np.tanh(2.5 * x) / np.tanh(2.5) + 1) / 2).tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    return table


def dicom_pictures() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (as cxrjax reads a file, as it looks where one step is left out)}, h w uint8."""
    brightness = phantom()
    stored = np.uint16(LOW + (HIGH - LOW) * brightness + 0.5)
    window = {"WindowCenter": (LOW + HIGH) / 2, "WindowWidth": HIGH - LOW}
    right = shown(header(stored, **window))
    negative = shown(header(LOW + HIGH - stored, **window, PhotometricInterpretation="MONOCHROME1"))
    slope, intercept = 0.25, -200
    rescaled = {
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "WindowCenter": slope * window["WindowCenter"] + intercept,
        "WindowWidth": slope * window["WindowWidth"],
    }
    faint = np.uint16(LOW + FAINT * brightness + 0.5)
    of_faint = {"WindowCenter": LOW + FAINT / 2, "WindowWidth": FAINT}
    low, high = (slope * end + intercept for end in (LOW, HIGH))
    return {
        "monochrome1": (negative, windowed(LOW + HIGH - stored)),
        "window": (right, windowed(stored, 0, LEVELS - 1)),
        "rescale": (shown(header(stored, **rescaled)), windowed(stored, low, high)),
        "bits": (right, windowed(stored, 0, 2**16 - 1)),
        "voi_lut": (shown(header(stored, VOILUTSequence=[s_curve()])), windowed(stored, 0, LEVELS - 1)),
        "eight_bits": (shown(header(faint, **of_faint)), windowed((faint >> 4) << 4, LOW, LOW + FAINT)),
    }


def side_by_side(pictures: Sequence[np.ndarray]) -> Image.Image:
    """Pictures h w 3 in a row, of one height, with nothing between them."""
    height = max(map(len, pictures))
    width = sum(picture.shape[1] + GAP for picture in pictures) - GAP
    canvas, at = np.zeros((height, width, 4), np.uint8), 0
    for picture in pictures:
        rgb = np.broadcast_to(picture[..., None], (*picture.shape, 3)) if picture.ndim == 2 else picture
        part = canvas[: len(rgb), at : at + rgb.shape[1]]
        part[...] = FRAME  # so that black and white pictures have an edge on any background
        part[1:-1, 1:-1, :3] = rgb[1:-1, 1:-1]
        at += rgb.shape[1] + GAP
    return Image.fromarray(canvas)


def seen_by(name: str, data: Path, px: int = 112, patch_px: int = 8) -> tuple[list[str], Image.Image]:
    """The labels and pictures of what a method is given of one phantom."""
    config = cxrjax.config(f"{name}:smoke", {"data.sets": "pages"})
    with config.unlocked():
        config.evals = {}
        config.model.image_px = px
        if "patch_px" in config.model:
            config.model.patch_px = patch_px
        if "local_views" in config:
            config.local_views.px = round(px * 96 / 224 / patch_px) * patch_px  # as the recipes have them
    config = main.whole(config, data / "runs" / name)
    method = methods.make(config)
    sources, _ = train.training_sources(config, method)
    batch = pipeline.dataset(sources, None, method.views, 1, 0)[0]
    abstract = jax.eval_shape(method.init, jax.random.key(0), batch)

    def rows(key):
        params, state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
        found = method.look(params, state, batch, key)
        return [row for row in found if row.images is not None and not any(word in row.label for word in OF_WEIGHTS)]

    found = jax.device_get(jax.jit(rows)(rng.fold(jax.random.key(0), "look")))
    scale = np.percentile(np.asarray(found[0].images[0], np.float32), panels.SCALE)
    drawn = [panels.drawn(row, 0, scale, row.images.shape[2]) for row in found]
    return [row.label for row in found], side_by_side(drawn)


def save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=80, method=6)
    print(f"{file.relative_to(IMAGES)}: {file.stat().st_size / 1000:.1f} kB", flush=True)


def draw(which: str, names: Sequence[str]) -> None:
    if which == "dicom":
        for name, pair in dicom_pictures().items():
            save(side_by_side(pair), IMAGES / "dicom" / f"{name}.webp")
        return
    with tempfile.TemporaryDirectory() as folder:
        phantom_set.build(name="pages", studies=20, short_side=160)
        for name in names or [name for name in methods.available() if name not in HEADS]:
            labels, image = seen_by(name, Path(folder))
            print(name, labels)
            save(image, IMAGES / "sees" / f"{name}.webp")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("dicom", "sees"))
    parser.add_argument("names", nargs="*", help="of methods; default: all")
    draw(**vars(parser.parse_args()))
