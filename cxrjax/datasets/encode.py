"""One picture of a manifest, with its masks, as it is stored: read, resized, fingerprinted and encoded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxrjax.datasets.manifest import Row
from cxrjax.imaging import masks, pixels, reader
from cxrjax.imaging import orientation as orientations
from cxrjax.imaging.fingerprint import fingerprint

SMALLEST_SHORT_SIDE = 16
ORIGINAL = "original"


class Form(NamedTuple):
    """How pictures are stored. short_side: px, or None for the original size; image_format: "jpeg" (quality 95) or
    "png"; bits: 8, or 16 as png."""

    short_side: int | None = 256
    image_format: str = "jpeg"
    bits: int = 8

    @property
    def config(self) -> str:
        """Name of the builder config, such as "256", "512-png" or "original-png16"."""
        kind = "" if self.image_format == "jpeg" else "-png" if self.bits == 8 else "-png16"
        return f"{self.short_side or ORIGINAL}{kind}"


class Encoded(NamedTuple):
    """One stored picture, and what its reader found and did.

    masks: PNG of the row's masks, then of each of its extra masks; None where there is none, and mask_problems says
    why if a file was named. header: what a DICOM file says for the
    record's fields view (the projection), sex and age; of other files the EXIF orientation by which they were turned.
    """

    image: bytes
    masks: tuple[bytes | None, ...]
    height: int
    width: int
    source_height: int
    source_width: int
    fingerprint: str
    header: Mapping[str, Any]
    steps: tuple[str, ...]
    mask_problems: tuple[str, ...]


class Reading(NamedTuple):
    """How files are read, as `reader.read`'s arguments of these names."""

    value_range: tuple[int, int] | None = None
    check_grey_range: bool = True
    admit: tuple[str, ...] = ()


def form(short_side: int | str | None, image_format: str = "jpeg", bits: int = 8) -> Form:
    """Checks the wished form; short_side: px, or "original" or None. Raises ValueError."""
    side = None if short_side in (None, ORIGINAL) else int(short_side)
    if side is not None and side < SMALLEST_SHORT_SIDE:
        raise ValueError(f"A short side of {side} px is too small; give at least {SMALLEST_SHORT_SIDE}.")
    if image_format not in ("jpeg", "png") or bits not in (8, 16) or (bits == 16 and image_format == "jpeg"):
        raise ValueError(
            f"{bits} bits as {image_format} cannot be stored: choose jpeg or png with 8 bits, or png with 16."
        )
    return Form(side, image_format, bits)


def encode(row: Row, form: Form, reading: Reading) -> Encoded:
    """Reads, resizes and encodes one picture and its masks; raises UnreadablePicture if the picture cannot be used."""
    picture = reader.read(row.file, bits=form.bits, **reading._asdict())
    small, steps = picture.pixels, picture.steps
    if (spread := pixels.spread(small)) < pixels.LEAST_SPREAD:
        steps += (f"{pixels.LOW_CONTRAST}: the middle 98 % of the pixels take up {spread:.1%} of the grey levels",)
    if form.short_side is not None:
        small = pixels.resize_short(picture.pixels, form.short_side)
        shortest = min(picture.source_height, picture.source_width)
        if shortest < form.short_side:
            steps += (f"enlarged: the short side had {shortest} px",)
    encoded_masks, problems = [], []
    for sources in (row.masks, *row.extra_masks):
        try:
            encoded_masks.append(_mask(sources, picture, small.shape) if sources else None)
        except pixels.UnreadablePicture as error:
            encoded_masks.append(None)
            names = ", ".join(source.name for source in sources if isinstance(source, Path))
            problems.append(f"{names}: {error}" if names else str(error))
    height, width = small.shape
    return Encoded(
        pixels.encode(small, form.image_format),
        tuple(encoded_masks),
        height,
        width,
        picture.source_height,
        picture.source_width,
        fingerprint(small),
        picture.header,
        steps,
        tuple(problems),
    )


def _mask(sources: Sequence[masks.MaskSource], picture: pixels.Picture, stored_shape: tuple[int, int]) -> bytes:
    """The union of the sources at the picture's size, binary again after resizing, as PNG."""
    shape = picture.pixels.shape
    orientation = picture.header.get("orientation", orientations.AS_STORED)
    drawn_shape = shape[::-1] if orientation > 4 else shape  # of the picture as stored
    united = np.zeros(shape, np.uint8)
    for source in sources:
        if isinstance(source, Path):
            part = pixels.read_mask(source, orientation, shape)
        else:
            part = orientations.turn(masks.draw(source, *drawn_shape), orientation)
        if abs(part.shape[0] / part.shape[1] / (shape[0] / shape[1]) - 1) > 0.02:
            name = source.name if isinstance(source, Path) else "of the table"
            raise pixels.UnreadablePicture(
                f"The mask {name} is {part.shape[1]} x {part.shape[0]} px, but its picture {shape[1]} x "
                f"{shape[0]}: their proportions differ, so they do not belong together."
            )
        united |= _binary(pixels.resize(part, *shape))
    return pixels.encode(_binary(pixels.resize(united, *stored_shape)), "png")


def _binary(mask: np.ndarray) -> np.ndarray:
    return np.where(mask > 127, 255, 0).astype(np.uint8)
