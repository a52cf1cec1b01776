"""Decodes compressed DICOM frames in a process of its own, because damaged frames crash or hang C and C++ decoders.

codecs.py starts this file as a script. Requests on standard input are pickled (transfer syntax, encapsulated pixel
data, decoder, options of pydicom); each answer is 8 bytes of length, then an array in NumPy's file format or, where
there is none, the reason as text.
"""

import io
import os
import pickle
import sys

import numpy as np
from pydicom.pixels.decoders.base import get_decoder

MEMORY = 4 * 2**30  # bytes that a frame may take; a damaged header can ask for anything


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _answer(syntax: str, data: bytes, plugin: str, options: dict) -> bytes:
    try:
        array, _ = get_decoder(syntax).as_array(data, raw=True, decoding_plugin=plugin, **options)
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        return stream.getvalue()
    except Exception as error:
        return f"{str(error).splitlines()[-1] if str(error) else type(error).__name__}".encode()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the decoders print there
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
