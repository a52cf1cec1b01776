"""The size of pictures, as model.image_px gives it: one number for a square, or two, height and width."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from ml_collections import config_dict

Px: TypeAlias = int | Sequence[int]
"""224, or (448, 384): height, then width."""


def sides(px: Any) -> tuple[int, int]:
    """(height, width) in pixels. Raises ValueError for what is neither a whole number from 1 on nor two of them."""
    given = tuple(px) if isinstance(px, list | tuple) else (px, px)
    if len(given) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in given):
        raise ValueError(
            f"image_px = {px!r} is no size of pictures: give a whole number of pixels for squares, such as 224, or "
            "height and width, such as 448,384"
        )
    return given[0], given[1]


def plain(px: Px) -> int | tuple[int, int]:
    """The one form of a size that is hashed and compared: a number for a square, else (height, width)."""
    height, width = sides(px)
    return height if height == width else (height, width)


def grid(px: Px, patch_px: int) -> tuple[int, int]:
    """Rows and columns of the patches that cover a picture. Raises ValueError where they do not."""
    (rows, above), (columns, beside) = (divmod(side, patch_px) for side in sides(px))
    if above or beside or not rows or not columns:
        raise ValueError(
            f"Pictures of {said(px)} px cannot be cut into patches of {patch_px} px: each side, model.image_px, must "
            "be a multiple of the patch, model.patch_px."
        )
    return rows, columns


def said(px: Px) -> str:
    """ "224", or "448 x 384", before the word px."""
    height, width = sides(px)
    return str(height) if height == width else f"{height} x {width}"


def setting(px: Any = None) -> config_dict.FieldReference:
    """A value of a config that takes either form, from the command line as well; None is "not given"."""
    return config_dict.FieldReference(px, field_type=object)
