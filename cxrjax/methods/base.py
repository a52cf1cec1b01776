"""The contract between a method and everything that trains, judges or exports it."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Method(NamedTuple):
    """A record of pure functions; losses are written on global arrays and name no device.

    views:  (example, numpy Generator) -> dict of arrays, one example on the host; "image" is uint8 v h w 1.
    init:   (key, batch) -> (params, state); params is what the optimizer updates, state is everything else.
    loss:   (params, state, batch, key, step) -> (scalar, Aux).
    after:  (params, state, step) -> state, once the parameters are updated: EMA, centre, queue.
    encode: (params, state, images uint8 b h w 1) -> {"pooled": b d, "patches": b p q d}, float32.
    image_px: side of the pictures that encode was trained on.
    couples_batch: whether the loss mixes examples, so that accumulating gradients over slices would change it.
    """

    views: Callable
    init: Callable
    loss: Callable
    after: Callable
    encode: Callable
    image_px: int
    couples_batch: bool = True


class Aux(NamedTuple):
    """Beside the scalar: state written in the forward pass, terms that sum to the scalar, and watched numbers."""

    state: Any
    terms: dict
    report: dict
