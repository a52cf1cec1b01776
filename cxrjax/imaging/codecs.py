"""The pixel data of a DICOM file to the cells it stores: h w unsigned integers, not yet given a meaning.

decoding.py decodes 8-bit JPEG, in this process and safely. JPEG Lossless, JPEG-LS and JPEG 2000 need C and C++ decoders
(gdcm, OpenJPEG) that damaged data can crash or keep busy for ever: they run in decoder_process.py. So does pydicom for
RLE, whose warnings of wrong lengths only a process of its own can catch.
Damage that no decoder can know: changed bytes inside a JPEG 2000 code block, which has no checksum, and inside a run of
RLE or a block of JPEG where the number of pixels stays right.
"""

import atexit
import io
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cxrjax.imaging import decoding
from cxrjax.imaging.decoding import UnreadablePicture

INSTALL = "pip install 'cxrjax[dicom]'"
PLUGINS = ("pylibjpeg", "gdcm", "pyjpegls", "pydicom")  # by preference; the last is for RLE
DECODE_SECONDS = 60
DECODER = Path(__file__).with_name("decoder_process.py")

IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE, JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
WHOLE_CELLS = (*NATIVE, RLE)  # that hold all allocated bits, not only the stored ones
_JPEG_END = b"\xff\xd9"  # ends JPEG, JPEG-LS and JPEG 2000 streams alike

_idle: list[tuple[int, subprocess.Popen]] = []  # (process that started it, decoder process)


class Layout(NamedTuple):
    """How the header says that pixels are stored."""

    rows: int
    columns: int
    bits_allocated: int  # 8 or 16
    bits_stored: int
    signed: bool
    photometric: str


def cells(syntax: str, data: bytes, representation: str, layout: Layout) -> np.ndarray:
    """Decodes pixel data to h w uint8 or uint16; negative values are two's complement.

    syntax: transfer syntax UID. data, representation: value and VR of the PixelData element.
    Raises UnreadablePicture where the data are short, damaged, of another size, or no decoder is installed.
    """
    if syntax in NATIVE:
        return _native(data, layout, syntax == BIG_ENDIAN, words=representation == "OW")
    if syntax == RLE:
        return _decoded_apart(syntax, data, layout)
    frame = _frame(syntax, data)
    if not _without_padding(frame).endswith(_JPEG_END):
        raise UnreadablePicture(f"The {name(syntax)} data are truncated: their end marker is missing.")
    if (size := _frame_size(frame)) != (layout.rows, layout.columns):
        raise UnreadablePicture(
            f"The {name(syntax)} frame is {size[1]} x {size[0]} px, but the header says {layout.columns} x "
            f"{layout.rows} (width x height)."
        )
    if syntax == JPEG_BASELINE or (syntax == JPEG_EXTENDED and layout.bits_stored <= 8):
        image, array = decoding.opened(frame, "jpeg")
        if image.mode != "L" or array is None:
            raise UnreadablePicture(f"The JPEG frame has colour (Pillow mode {image.mode}); the header says grey.")
        return _unsigned(array, layout)
    return _decoded_apart(syntax, data, layout)


def name(syntax: str) -> str:
    """The transfer syntax in words and its UID."""
    from pydicom.uid import UID

    words = UID(syntax).name.split(":")[0].split(" (")[0]
    return f"{words} ({syntax})" if words != syntax else f"transfer syntax {syntax}"


def _native(data: bytes, layout: Layout, big_endian: bool, words: bool) -> np.ndarray:
    wanted = layout.rows * layout.columns * layout.bits_allocated // 8
    if len(data) < wanted:
        raise UnreadablePicture(
            f"The pixel data are truncated: {len(data)} bytes where {layout.columns} x {layout.rows} px of "
            f"{layout.bits_allocated} bits take {wanted}."
        )
    if (rest := data[wanted + wanted % 2 :]).strip(rest[:1]):  # padding repeats one byte
        raise UnreadablePicture(
            f"The pixel data hold {len(data)} bytes, but {layout.columns} x {layout.rows} px of "
            f"{layout.bits_allocated} bits take {wanted}: the header does not describe them."
        )
    if big_endian and words and layout.bits_allocated == 8:  # two pixels to a big-endian word
        data = np.frombuffer(data[: len(data) // 2 * 2], "<u2").byteswap().tobytes()
    kind = np.dtype(f"{'>' if big_endian else '<'}u{layout.bits_allocated // 8}")
    array = np.frombuffer(data, kind, layout.rows * layout.columns)
    return array.reshape(layout.rows, layout.columns).astype(kind.newbyteorder("="), copy=False)


def _frame(syntax: str, data: bytes) -> bytes:
    from pydicom.encaps import generate_frames

    try:
        return bytes(next(generate_frames(data, number_of_frames=1)))
    except Exception as error:  # whatever pydicom raises on damaged data
        raise UnreadablePicture(f"The {name(syntax)} data hold no frame ({error}).") from None


def _without_padding(frame: bytes) -> bytes:
    """A frame without what follows its end marker, where that is one byte repeated, or fill bytes and zeros."""
    stripped = frame.rstrip(b"\0\xff")
    return stripped if stripped.endswith(_JPEG_END) else stripped.rstrip(stripped[-1:])


def _frame_size(frame: bytes) -> tuple[int, int]:
    """Height and width that a JPEG, JPEG-LS or JPEG 2000 stream declares; (0, 0) where it declares none."""
    if not frame.startswith(b"\xff\xd8"):
        start = frame.find(b"\xff\x4f\xff\x51")  # at 0, or later inside the boxes of a JP2 file
        right, bottom, left, top = (int.from_bytes(frame[start + at :][:4], "big") for at in (8, 12, 16, 20))
        return (bottom - top, right - left) if start >= 0 else (0, 0)
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return 0, 0


def _options(layout: Layout) -> dict:
    """The layout in pydicom's words, with all bits as stored ones, because gdcm silently cuts off the others."""
    return {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_allocated,
        "pixel_representation": int(layout.signed),
        "photometric_interpretation": layout.photometric,
        "pixel_keyword": "PixelData",
    }


def _decoded_apart(syntax: str, data: bytes, layout: Layout) -> np.ndarray:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        raise UnreadablePicture(f"Pixels in {name(syntax)} are not read here; convert the file first.") from None
    plugin = next((plugin for plugin in PLUGINS if plugin in available), None)
    if syntax == JPEG_EXTENDED and plugin == "gdcm":
        raise UnreadablePicture(
            f"Pixels in {name(syntax)} with more than 8 bits need a decoder under the GPL, which is not installed: "
            "pip install pylibjpeg-libjpeg."
        )
    if plugin is None:
        raise UnreadablePicture(f"Pixels in {name(syntax)} need a decoder that is not installed: {INSTALL}.")
    answer = _ask(pickle.dumps((syntax, data, plugin, _options(layout))))
    if answer is None:
        raise UnreadablePicture(f"The {name(syntax)} data are corrupt: their decoder {plugin} crashed or hung.")
    if not answer.startswith(b"\x93NUMPY"):
        raise UnreadablePicture(
            f"The {name(syntax)} data cannot be decoded ({answer.decode(errors='replace').strip()})."
        )
    return _unsigned(np.load(io.BytesIO(answer), allow_pickle=False), layout)


def _unsigned(array: np.ndarray, layout: Layout) -> np.ndarray:
    if array.shape != (layout.rows, layout.columns) or array.dtype.itemsize > 2:
        raise UnreadablePicture(f"The decoded frame has shape {array.shape} and type {array.dtype}.")
    if 8 * array.dtype.itemsize < layout.bits_allocated:  # decoders choose the type by the bits of the frame
        array = array.astype(np.int16 if array.dtype.kind == "i" else np.uint16)
    return array.view(f"u{array.dtype.itemsize}")


def _ask(request: bytes) -> bytes | None:
    """The answer of a decoder process, or None where it crashed or took longer than DECODE_SECONDS."""
    process = _take()
    assert process.stdin and process.stdout  # pipes, as `_take` opens them
    timer = threading.Timer(DECODE_SECONDS, process.kill)
    timer.start()
    try:
        process.stdin.write(request)
        process.stdin.flush()
        length = process.stdout.read(8)
        answer = process.stdout.read(int.from_bytes(length, "little")) if len(length) == 8 else b""
    except BrokenPipeError:
        length = answer = b""
    except BaseException:
        _end(process)
        raise
    finally:
        timer.cancel()
    if len(length) < 8 or len(answer) < int.from_bytes(length, "little"):
        _end(process)
        return None
    _idle.append((os.getpid(), process))
    return answer


def _take() -> subprocess.Popen:
    """An idle decoder process of this process (not of the one it was forked from), or a new one."""
    while True:
        try:
            owner, process = _idle.pop()
        except IndexError:
            break
        if owner == os.getpid() and process.poll() is None:
            return process
    return subprocess.Popen(
        [sys.executable, "-P", str(DECODER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _end(process: subprocess.Popen) -> None:
    assert process.stdin and process.stdout  # pipes, as `_take` opens them
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass


@atexit.register
def _end_idle() -> None:
    for owner, process in _idle:
        if owner == os.getpid():
            _end(process)
