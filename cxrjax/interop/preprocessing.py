"""What a preprocessor_config.json says of the pictures that an encoder wants: their size, their fit, their scale.

Filters differ: transformers' processors shrink by an antialiased bilinear or bicubic filter, and we by area averages.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cxrjax.sizes import plain, said, sides

FILE = "preprocessor_config.json"
OF_BOTH = "processor_config.json"
"""What transformers 5 writes in its place for a model that also reads texts."""
CROPPED_BELOW_PX = 384  # ConvNeXt's processor crops smaller pictures, and stretches larger ones


class Preprocessing(NamedTuple):
    """mean, std: per channel, of pixels in [0, 1]. px: size of the pictures (`sizes.plain`), None where the file
    does not say.

    sees: how pictures are fitted to it, a word of `crops.fit_as`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    px: int | tuple[int, int] | None
    sees: str


def read(folder: Path, channels: int) -> Preprocessing:
    """The preprocessing of a model's folder, that of its pictures where it stands beside that of texts.

    Raises ValueError where there is none, or it is one that we do not do, naming the key.
    """
    path = folder / FILE
    if not path.is_file() and (folder / OF_BOTH).is_file():
        path = folder / OF_BOTH
        found = json_of(path).get("image_processor")
        if not isinstance(found, dict):
            raise ValueError(f"{path} has no image_processor, so how pictures are scaled is unknown; add a {FILE}.")
        return Preprocessing(*_normalisation(found, path, channels), *_fit(found, path))
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {FILE}, so its normalisation is unknown and cannot be folded. Add one with "
            "the image_mean and image_std that the model was trained with."
        )
    found = json_of(path)
    return Preprocessing(*_normalisation(found, path, channels), *_fit(found, path))


class Keys(dict[str, Any]):
    """What a JSON file holds. A key that it lacks is a ValueError which names the file."""

    def __init__(self, found: Mapping[str, Any], path: Path):
        super().__init__(found)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.path} lacks the key {key!r}; download it again, or add the key that the model needs.")


def json_of(path: Path) -> Keys:
    """The object in a JSON file; raises ValueError where it is damaged."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # a wrong byte is one too
        raise ValueError(f"{path} is damaged ({error}); download it again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} and no object of keys; download it again.")
    return Keys(found, path)


def _normalisation(found: Mapping[str, Any], path: Path, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scale = found.get("rescale_factor", 1 / 255)
    if not found.get("do_rescale", True) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        raise ValueError(f"{path} scales pixels by {scale}; expected do_rescale with 1/255.")
    if not found.get("do_normalize", True):
        return (0.0,) * channels, (1.0,) * channels
    given = [found.get(key, 0.5) for key in ("image_mean", "image_std")]
    try:  # one number is that of all channels
        mean, std = (tuple(map(float, each if isinstance(each, list) else [each] * channels)) for each in given)
    except (TypeError, ValueError):
        raise ValueError(f"{path} has image_mean {given[0]!r} and image_std {given[1]!r}; expected numbers.") from None
    if not len(mean) == len(std) == channels:
        raise ValueError(f"{path} normalises {len(mean)} channel(s), but the model takes {channels}.")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"{path} has image_mean {mean} and image_std {std}; expected numbers, deviations above 0.")
    return mean, std


def _fit(found: Mapping[str, Any], path: Path) -> tuple[int | tuple[int, int] | None, str]:
    """(px, sees). Keys that are left out say nothing: then the middle of a picture is seen, as by our own encoders."""
    size, crop, crops = found.get("size"), found.get("crop_size"), found.get("do_center_crop", False)
    if crops and crop is not None:
        px = _px(crop, path, "crop_size")
        least = min(sides(px))
        if not found.get("do_resize", True) or size is None:
            return px, "image"
        if not isinstance(size, Mapping) or "shortest_edge" in size:
            short = size["shortest_edge"] if isinstance(size, Mapping) else size
            if not isinstance(short, int) or short < least:
                raise ValueError(
                    f"{path} crops {said(px)} px out of pictures of {short!r} px; expected size >= crop_size."
                )
            return px, "image" if short == least else f"image{short}"
        whole = _px(size, path, "size")
        if whole != px:
            raise ValueError(
                f"{path} stretches to {said(whole)} px and then crops {said(px)} px, which is not done here."
            )
        return px, "whole"
    if size is None or not found.get("do_resize", True):
        return None, "image"
    if found.get("do_pad") or (isinstance(size, Mapping) and "longest_edge" in size and "shortest_edge" not in size):
        return _px(size, path, "size", "longest_edge"), "padded"
    if isinstance(size, Mapping) and "shortest_edge" in size:
        px = size["shortest_edge"]
        if not isinstance(px, int) or px < 1:
            raise ValueError(f"{path} has size {size!r}; expected whole pixels.")
        if "crop_pct" not in found:  # the processor leaves each in its own aspect, and encoders here see one size
            return px, "image"
        return px, f"image{int(px / found['crop_pct'])}" if px < CROPPED_BELOW_PX else "whole"
    return _px(size, path, "size"), "whole"


def _px(size: Any, path: Path, key: str, edge: str = "") -> int | tuple[int, int]:
    """What a size of a processor names. Raises ValueError where it is no whole pixels."""
    given: Any = size
    if isinstance(size, Mapping):
        given = size[edge] if edge in size else (size.get("height"), size.get("width"))
    try:
        return plain(given)
    except ValueError:
        raise ValueError(f"{path} has {key} {size!r}; expected whole pixels, one number or height and width.") from None
