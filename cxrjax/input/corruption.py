"""Block corruption of group masked model learning: rectangles drawn on the host, filled on the device.

Source: GMML (Atito et al., arXiv 2205.14986), its released code. A picture is corrupted in one way, drawn uniformly
from the given kinds and "donor". Rectangles are drawn until ρ of the picture is covered; they may overlap.

    noise   N(0, 1) in standardised values       image   rectangles from elsewhere in the same picture
    zeros   0 in standardised values             donor   the same rectangles of another picture of the batch

What is hidden is a function of the example's own generator, so it is the same on any number of hosts. Noise and donors
are functions of the step's key and the place in the global batch, so they are the same on any number of devices. The
released code draws donors from one device's pictures only: `groups`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.config import names
from cxrjax.sizes import Px, said, sides

# What a pixel of "fill" says; 0 leaves it as it is.
FILLS = {"noise": 1, "zeros": 2, "image": 3, "donor": 4}
LARGEST_BLOCK = 0.3  # of either side


class Corruption(NamedTuple):
    """kinds: words of FILLS without "donor", comma-separated; "" corrupts by donors alone.

    share: ρ, the largest share that a kind hides; the share is uniform between min(½, ρ) and ρ, and overshoots by a
        part of the last rectangle. donor_share: the same for donors; 0 does without them.
    align: rectangles start and end on multiples of this many pixels; 1, or the patch size.
    sampler: "released" draws the top left corner inside the picture, so that rectangles only grow right and down and
        the upper and left borders are hardly ever hidden; "uniform" lets them start outside, so that every pixel is
        as likely (ours).
    self_donor: donors may be the picture itself (as released), which then is hidden but unchanged.
    groups: donors come from the same of this many consecutive slices of the batch; with one slice per device, no
        pictures travel between devices.
    """

    kinds: str = "noise"
    share: float = 0.75
    donor_share: float = 0.3
    align: int = 1
    sampler: str = "released"
    self_donor: bool = False
    groups: int = 1

    def check(self, px: Px) -> None:
        """Raises ValueError where the fields are no corruption of pictures of this size."""
        words = names(self.kinds)
        unknown = [word for word in words if word not in FILLS or word == "donor"]
        if unknown or len(set(words)) < len(words):
            raise ValueError(f"kinds {self.kinds!r} must be different ones of 'noise', 'zeros' and 'image'")
        if self.sampler not in ("released", "uniform"):
            raise ValueError(f"sampler must be 'released' or 'uniform', got {self.sampler!r}")
        if not (0 <= self.share < 1 and 0 <= self.donor_share < 1):
            raise ValueError(f"share and donor_share must be in [0, 1), got {self.share} and {self.donor_share}")
        if not words and not self.donor_share:
            raise ValueError("without kinds and with donor_share 0 nothing is left to corrupt with")
        largest = int(min(sides(px)) * LARGEST_BLOCK)
        if self.align < 1 or any(side % self.align for side in sides(px)) or largest <= self.align:
            raise ValueError(
                f"align {self.align} must divide the {said(px)} px of the picture and be below {largest}, which is "
                f"{LARGEST_BLOCK:.0%} of them, the largest rectangle"
            )


def draw(corruption: Corruption, rng: np.random.Generator, px: Px) -> dict[str, np.ndarray]:
    """What becomes of one picture of this size: "fill" h w 1 uint8, a value of FILLS at each pixel that is hidden.

    Where the kinds have "image", also "source" h w 1 int32: the pixel, in raster order, that each pixel is taken from.
    """
    kinds = names(corruption.kinds)
    choices = kinds + (("donor",) if corruption.donor_share else ())
    kind = choices[rng.integers(len(choices))]
    share = corruption.donor_share if kind == "donor" else corruption.share
    fill = np.zeros(sides(px), np.uint8)
    source = np.arange(fill.size, dtype=np.int32).reshape(fill.shape)
    for top, left, height, width in blocks(rng, px, share, corruption.align, corruption.sampler):
        there = slice(top, top + height), slice(left, left + width)
        fill[there] = FILLS[kind]
        if kind == "image":
            # Like the corruption itself, a copy may take what an earlier copy has put there.
            other_top, other_left = (
                int(rng.integers(whole - side)) // corruption.align * corruption.align
                for whole, side in zip(fill.shape, (height, width), strict=True)
            )
            source[there] = source[other_top : other_top + height, other_left : other_left + width].copy()
    found = {"fill": fill[:, :, None]}
    return found | {"source": source[:, :, None]} if "image" in kinds else found


def blocks(rng: np.random.Generator, px: Px, share: float, align: int, sampler: str) -> list[tuple[int, ...]]:
    """Rectangles (top, left, height, width) that together cover a share of the picture ~ U(min(½, share), share)."""
    covered, found = np.zeros(sides(px), bool), []
    wanted = rng.uniform(min(0.5, share), share) * covered.size
    while np.count_nonzero(covered) < wanted:
        # Drawn many at a time, most of which are used: a call of the generator costs more than a rectangle.
        for top, left, bottom, right in _rectangles(rng, 32, covered.shape, align, sampler):
            covered[top:bottom, left:right] = True
            found.append((top, left, bottom - top, right - left))
            if np.count_nonzero(covered) >= wanted:
                break
    return found


def _rectangles(
    rng: np.random.Generator, count: int, shape: tuple[int, ...], align: int, sampler: str
) -> list[list[int]]:
    whole = np.array(shape)
    lengths = _pairs(rng, align, (whole * LARGEST_BLOCK).astype(int), count)
    if sampler == "released":
        starts = _pairs(rng, 0, whole - align, count) // align * align
        lengths = np.minimum(lengths, whole - starts)
        # Half a step is rounded to the even number of steps, by NumPy as by Python.
        stops = starts + np.rint(lengths / align).astype(int) * align
    else:
        lengths = np.rint(lengths / align).astype(int) * align
        # Every place at which at least one step of the rectangle lies in the picture.
        starts = (rng.integers(0, (whole + lengths) // align - 1) + 1) * align - lengths
        starts, stops = np.maximum(starts, 0), np.minimum(starts + lengths, whole)
    return np.concatenate([starts, stops], axis=1).tolist()


def _pairs(rng: np.random.Generator, low: int, ends: np.ndarray, count: int) -> np.ndarray:
    """count 2 whole numbers from low to below either end."""
    # Two equal bounds draw other numbers than one, which all runs on squares have drawn by.
    return rng.integers(low, ends if ends[0] != ends[1] else int(ends[0]), (count, 2))


def apply(corruption: Corruption, key: jax.Array, images: jax.Array, drawn: dict[str, jax.Array]) -> jax.Array:
    """Fills what is hidden: images b v h w c, standardised → the same shape, equal to `images` where "fill" is 0.

    drawn: "fill" b v h w 1 and, with the kind "image", "source" b v h w 1, as `draw` gives them for each view.
    A donor serves the view of the same number, at the same place.
    """
    kinds, fill = names(corruption.kinds), drawn["fill"]
    key_noise, key_donor = jax.random.split(key)
    filled = images
    if "noise" in kinds:
        noise = jax.random.normal(key_noise, images.shape, images.dtype)
        filled = jnp.where(fill == FILLS["noise"], noise, filled)
    if "zeros" in kinds:
        filled = jnp.where(fill == FILLS["zeros"], 0, filled)
    if "image" in kinds:
        flat, source = (x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (images, drawn["source"]))
        moved = jnp.take_along_axis(flat, source, axis=2).reshape(images.shape)
        filled = jnp.where(fill == FILLS["image"], moved, filled)
    if corruption.donor_share:
        filled = jnp.where(fill == FILLS["donor"], _donated(corruption, key_donor, images), filled)
    return filled


def donors(key: jax.Array, b: int, v: int, self_donor: bool = False) -> jax.Array:
    """b v int32: for each view of each picture the number of another picture, uniform over the batch.

    self_donor: over all pictures, the own one included. A picture alone in its batch is its own donor in any case.
    """
    if self_donor:
        return jax.random.randint(key, (b, v), 0, b)
    steps = jax.random.randint(key, (b, v), 1, max(b, 2))
    return (jnp.arange(b)[:, None] + steps) % b


def _donated(corruption: Corruption, key: jax.Array, images: jax.Array) -> jax.Array:
    b, v = images.shape[:2]
    size = b // corruption.groups
    if size * corruption.groups != b:
        raise ValueError(f"a batch of {b} cannot be cut into {corruption.groups} groups of donors")
    keys = jax.random.split(key, corruption.groups)
    chosen = jax.vmap(lambda k: donors(k, size, v, corruption.self_donor))(keys)
    slices = images.reshape(corruption.groups, size, *images.shape[1:])
    return jax.vmap(lambda x, ids: x[ids, jnp.arange(v)])(slices, chosen).reshape(images.shape)
