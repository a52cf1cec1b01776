"""Decodes compressed DICOM frames in a process of its own, because damaged frames crash or hang C and C++ decoders.

codecs.py starts this file as a script. Requests on standard input are pickled (transfer syntax, encapsulated pixel
data, decoder, options of pydicom); each answer is 8 bytes of length, then an array in NumPy's file format or, where
there is none, the reason as text.
"""

import io
import os
import pickle
import re
import sys
import tempfile
import warnings

import numpy as np
from pydicom.pixels.decoders.base import get_decoder

DAMAGE = "Corrupt JPEG data: .*|Premature end of JPEG file"  # printed by gdcm, which goes on
MEMORY = 4 * 2**30  # bytes that a frame may take; a damaged header can ask for anything


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _refuse_wrong_length(warning: str, data: bytes) -> None:
    """Raises ValueError where pydicom warns that an RLE segment holds more than its pixels and padding.

    Padding is a byte that makes the length even, or zeros at the end of the data, of which two are read as one pixel.
    """
    counts = re.search(r"RLE segment .*?(\d+) vs\. (\d+) bytes", warning)
    zeros = len(data) - len(data.rstrip(b"\0"))
    if counts and int(counts[1]) - int(counts[2]) > 1 + zeros // 2:
        raise ValueError(f"an RLE segment holds {counts[1]} bytes where its pixels take {counts[2]}")


def _printed() -> str:
    """What was printed as an error since the last call."""
    os.lseek(2, 0, os.SEEK_SET)
    printed = os.read(2, 2**16).decode("ascii", "replace")
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    return printed


def _answer(syntax: str, data: bytes, plugin: str, options: dict) -> bytes:
    _printed()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            array, _ = get_decoder(syntax).as_array(data, raw=True, decoding_plugin=plugin, **options)
        for warning in caught:
            _refuse_wrong_length(str(warning.message), data)
        if damage := re.search(DAMAGE, _printed()):
            raise ValueError(damage[0])
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        return stream.getvalue()
    except Exception as error:
        return f"{str(error).splitlines()[-1] if str(error) else type(error).__name__}".encode()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the decoders print there
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
    _limit_memory()
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer = _answer(*request)
        answers.write(len(answer).to_bytes(8, "little") + answer)
        answers.flush()


if __name__ == "__main__":
    main()
