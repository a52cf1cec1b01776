"""EXIF orientations: how a stored picture is turned to be looked at, and with it its masks and boxes.

1 as stored, 2 mirrored, 3 by half a turn, 4 upside down, 5 transposed, 6 by a quarter clockwise, 7 transposed over the
other diagonal, 8 by a quarter counter-clockwise (EXIF 2.32, tag 0x0112).
"""

import numpy as np

TAG = 0x0112
AS_STORED = 1


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """The stored array, h w or h w c, as it is to be looked at. Unknown orientations are 1."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def turn_box(
    x: float, y: float, width: float, height: float, turned_size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """A box of the stored picture in the turned one; x, y is its top-left corner.

    turned_size: height and width of the picture after turning.
    """
    if orientation in (5, 6, 7, 8):
        x, y, width, height = y, x, height, width
    if orientation in (2, 3, 6, 7):
        x = turned_size[1] - x - width
    if orientation in (3, 4, 7, 8):
        y = turned_size[0] - y - height
    return x, y, width, height
