"""References that look at anything but the findings: what a judge finds with them, shortcuts can explain.

    metadata        view, sex, age, the picture's size and statistics of its border; no encoder
    blur            the encoder, on pictures of which 16×16 averages are left
    without_lungs   the encoder, on pictures whose lungs are black
    lungs           the encoder, on pictures that are black but for the lungs

A model of the view alone reaches a mean AUROC of 0.588 on ChestX-ray14's official split. Radiographs betray hospital,
scanner and device by their border, burned-in marks and grey values (Zech et al., PLOS Medicine 2018; DeGrave et al.,
Nature Machine Intelligence 2021). The outline of black lungs still shows the size of heart and lungs, so what is
reached without the lungs is no proof of a shortcut for labels such as cardiomegaly.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.datasets import schema
from cxrjax.evals import pictures
from cxrjax.evals.base import Encoder, digest
from cxrjax.input import converted_sets, crops, pipeline
from cxrjax.input.source import Source

BLUR_PX = 16
BAND = 8
"""The border is the outermost eighth of the height and of the width."""
SEXES = ("F", "M", "")
SAID = {
    "metadata": "a model of view, sex, age, picture size and border",
    "blur": f"the encoder on {BLUR_PX}×{BLUR_PX} averages",
    "without_lungs": "the encoder on pictures without lungs",
    "lungs": "the encoder on lungs alone",
}
"""Name in config.references -> what it is, for sentences."""


class NoMasks(ValueError):
    """Pictures of which nobody has said where the lungs are."""


def metadata() -> Encoder:
    """What is known of a picture without looking into it, as features, see `described`."""

    def read(source: Source, batch_size: int, limit_bytes: float) -> Iterator[np.ndarray]:
        del limit_bytes  # nothing is kept but the features
        for batch, _ in pipeline.evaluation_batches(source, described, batch_size):
            yield batch["described"]

    return Encoder(lambda rows: {"pooled": jnp.asarray(rows)}, 0, digest("metadata", 1), "metadata", read=read)


def described(example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One record as {"described": 36 float32}, for `pipeline.evaluation_batches`.

    View (4 columns), sex (3), age in centuries, its square, and whether it is not known (3), the logarithms of height
    and width as stored (2), and of the eight cells of the border mean, deviation and highest value, 0 to 1 (24).
    """
    age = float(example["age"]) if "age" in example else -1.0
    sex = example["sex"] if "sex" in example else ""
    picture = crops.decode(example["image"])
    known = [age / 100, (age / 100) ** 2, 0.0] if age >= 0 else [0.0, 0.0, 1.0]
    row = [float(example["view"] == view) for view in schema.PROJECTIONS]
    row += [float(sex == one) for one in SEXES] + known + np.log(picture.shape[:2]).tolist() + border(picture)
    return {"described": np.array(row, np.float32)}


def border(picture: np.ndarray) -> list[float]:
    """Mean, deviation and highest value, 0 to 1, of the four corners and four sides of a picture, uint8 h w."""
    cuts = [(0, max(1, side // BAND), side - max(1, side // BAND), side) for side in picture.shape[:2]]
    spans = [[slice(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)] for ends in cuts]
    cells = [picture[rows, columns] / 255 for rows in spans[0] for columns in spans[1]]
    del cells[4]  # the middle
    return [float(value) for cell in cells for value in (cell.mean(), cell.std(), cell.max())]


def blurred(encoder: Encoder, px: int = BLUR_PX) -> Encoder:
    """The encoder on pictures that are averaged to px px and enlarged again."""

    @jax.jit
    def blur(images: jax.Array) -> jax.Array:  # uint8 b h w 1
        small = jax.image.resize(images.astype(jnp.float32), (len(images), px, px, 1), "linear", antialias=True)
        return jnp.round(jax.image.resize(small, images.shape, "linear")).astype(jnp.uint8)

    joint = encoder.joint and encoder.joint._replace(image=lambda images, of=encoder.joint.image: of(blur(images)))
    of_blocks, named = encoder.layers, _named(encoder, f"blur-{px}")
    layers = of_blocks and (lambda images, count, mean: of_blocks(blur(images), count, mean))
    return named._replace(encode=lambda images: encoder.encode(blur(images)), joint=joint, layers=layers)


def masked(encoder: Encoder, keep_lungs: bool) -> Encoder:
    """The encoder on pictures that are black but for the lungs (keep_lungs), or whose lungs are black.

    Reading raises NoMasks for a set without masks of the lungs, and where some of its pictures have none.
    """

    def read(source: Source, batch_size: int, limit_bytes: float) -> Iterator[np.ndarray]:
        name = source.converted_set.name
        fields = converted_sets.builder(source.converted_set.directory).info.features
        if "mask" not in fields:
            raise NoMasks(f"the set {name!r} has no masks of the lungs")
        both = partial(pictures.batches, source, encoder.image_px, batch_size, limit_bytes=limit_bytes)
        own, lungs = partial(both, what=encoder.sees), partial(both, what="mask", sees=encoder.sees)
        unknown = np.concatenate([(one == pictures.UNKNOWN).any(axis=(1, 2, 3)) for one in lungs()])
        if lacking := int(unknown[: len(source)].sum()):
            raise NoMasks(
                f"{lacking:,} of {len(source):,} {source.split} pictures of {name!r} have no mask of the lungs"
            )
        for images, masks in zip(own(), lungs(), strict=True):
            yield np.where((masks >= 128) == keep_lungs, images, 0).astype(np.uint8)

    return _named(encoder, "lungs" if keep_lungs else "without_lungs")._replace(read=read)


def of(name: str, encoder: Encoder | None) -> Encoder | None:
    """The reference of a name in SAID; None for another name, and for an encoder's where there is none."""
    if name == "metadata":
        return metadata()
    if name not in SAID or encoder is None:
        return None
    return blurred(encoder) if name == "blur" else masked(encoder, name == "lungs")


def _named(encoder: Encoder, name: str) -> Encoder:
    return encoder._replace(name=name, step=0, digest=digest(encoder.digest, name), attention=None)
