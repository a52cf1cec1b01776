"""Small DICOM files for the tests, written from an array in any transfer syntax that there is an encoder for."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

TRANSFER_SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big_endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "jpeg": uid.JPEGBaseline8Bit,
    "jpeg_lossless": uid.JPEGLosslessSV1,
    "jpeg_ls": uid.JPEGLSLossless,
    "jpeg2000": uid.JPEG2000,
    "jpeg2000_lossless": uid.JPEG2000Lossless,
    "rle": uid.RLELossless,
}


def write(
    path: str | Path,
    pixels: np.ndarray,
    *,
    photometric: str = "MONOCHROME2",
    bits_stored: int | None = None,
    transfer_syntax: str = "explicit",
    **tags,
) -> Path:
    """Writes a single-frame digital X-ray and returns its path.

    pixels: h w (or h w 3 for colour) uint8, uint16 or int16. bits_stored: default all bits of the type.
    transfer_syntax: a key of TRANSFER_SYNTAXES. "jpeg" takes uint8 only and, like "jpeg2000", changes values a little.
    tags: DICOM keywords and values, such as WindowCenter=40 or PatientAge="057Y"; None removes one that is written by
        default. They describe the file and never change `pixels`.
    """
    dataset = dataset_of(pixels, photometric, bits_stored)
    syntax = TRANSFER_SYNTAXES[transfer_syntax]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if transfer_syntax in ("implicit", "explicit", "deflated"):
        dataset.file_meta.TransferSyntaxUID = syntax
    elif transfer_syntax == "big_endian":
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    elif transfer_syntax == "jpeg":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        _encapsulate(dataset, buffer.getvalue(), syntax)
    elif transfer_syntax == "jpeg2000":
        dataset.compress(syntax, j2k_cr=[2], encoding_plugin="pylibjpeg", generate_instance_uid=False)
    elif transfer_syntax == "jpeg2000_lossless":
        dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    elif transfer_syntax == "rle":
        dataset.compress(syntax, encoding_plugin="pydicom", generate_instance_uid=False)
    else:
        dataset = _compressed_by_gdcm(dataset, Path(path), transfer_syntax)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return Path(path)


def dataset_of(pixels: np.ndarray, photometric: str = "MONOCHROME2", bits_stored: int | None = None) -> Dataset:
    """The data set of a digital X-ray with uncompressed little-endian pixels, h w or h w 3."""
    dataset = Dataset()
    dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=[hashlib.sha256(pixels.tobytes()).hexdigest()])
    dataset.Modality = "DX"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientID = "1"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits_stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated == 16 else "OB"
    return dataset


def _encapsulate(dataset: Dataset, frame: bytes, syntax: uid.UID) -> None:
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax


def _compressed_by_gdcm(dataset: Dataset, path: Path, transfer_syntax: str) -> Dataset:
    import gdcm

    kind = {"jpeg_lossless": "JPEGLosslessProcess14_1", "jpeg_ls": "JPEGLSLossless"}[transfer_syntax]
    dataset.save_as(path, enforce_file_format=True)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    read = reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    changed = read and change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetFileName(str(path))
    writer.SetImage(change.GetOutput())
    if not (changed and writer.Write()):
        raise ValueError(f"gdcm cannot write {transfer_syntax} to {path}.")
    return dcmread(path)


def noise(dtype: type, low: int, high: int, shape: tuple[int, int] = (40, 34)) -> np.ndarray:
    """Random pixels low to high (included), each of the two at least once."""
    values = np.random.default_rng(0).integers(low, high, shape, endpoint=True)
    values[0, :2] = low, high
    return values.astype(dtype)


def robust(values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """What a deep picture without a window becomes: 0.1 and 99.9 percentiles of the counted values to 0 and 65535."""
    counted = values if counted is None else values[counted]
    low, high = np.percentile(counted, [0.1, 99.9], method="inverted_cdf")
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 65535)
