"""The files below a folder, and the text in them."""

import codecs
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

BAR_AFTER = 3  # seconds


def below(folder: Path, seen: Callable[[int], object] = lambda count: None) -> list[str]:
    """Paths of all files below the folder, relative and with "/", in order; hidden ones are left out.

    Links are followed, each folder once, so that links in a circle do no harm. Nothing is asked for its state but
    links: what a folder lists is enough. seen: gets the number of files that each folder adds.
    """
    paths: list[str] = []
    visited: set[str] = set()  # real paths
    waiting, links = [("", os.path.realpath(folder))], []
    while waiting or links:
        if not waiting:  # after all others, so that a folder is found under its own name where it has one
            links.sort(reverse=True)
            prefix, place = links.pop()
            waiting.append((prefix, os.path.realpath(place)))
        prefix, place = waiting.pop()
        if place in visited:
            continue
        visited.add(place)
        before = len(paths)
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    paths.append(prefix + entry.name)
                elif entry.name != "__MACOSX":
                    found = links if entry.is_symlink() else waiting
                    found.append((f"{prefix}{entry.name}/", entry.path))
        seen(len(paths) - before)
    return sorted(paths)


def scanned(folder: Path) -> list[str]:
    """As `below`, with a count on a bar where it takes longer than some seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10
    with tqdm(desc=f"looking for files in {shown(folder)}", unit="file", delay=BAR_AFTER, mininterval=interval) as bar:
        return below(folder, bar.update)


def say(line: str) -> None:
    """Prints a line; letters that the terminal does not know become escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def printable(path: str | Path) -> str:
    """A path as text that can be written anywhere: bytes that are no UTF-8 become \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown(path: str | Path) -> str:
    """As `printable`, with composed letters (NFC), so that names that look the same are the same."""
    return unicodedata.normalize("NFC", printable(path))


def decoded(data: bytes, encoding: str | None = None) -> tuple[str, str]:
    """Text, and the encoding it was in: UTF-8, UTF-16 with or without its mark, else Windows-1252.

    encoding: the one to take. Raises LookupError for one that does not exist, UnicodeDecodeError where it does not fit.
    """
    if encoding is not None:
        return data.decode(encoding).removeprefix("\ufeff"), encoding
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace"), "utf-16"
    # Of Western text in UTF-16 every other byte is zero; no other encoding of text has any.
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        half = data[offset:400:2]
        if half.count(0) > len(half) / 2:
            return data.decode(name, errors="replace"), name
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace"), "cp1252"
