"""Where an encoder's [CLS] token attends: the map over the example pictures of a results page.

The map holds the softmax weights with which [CLS] reads the patches in the last block of a Vision Transformer, as a
mean over its heads. DINO shows the same (Caron et al., ICCV 2021). The map says where the judged feature comes from in
its last step. It does not say why a label was given, since the blocks before have mixed the patches. There is a map
only where the judged feature is [CLS] itself. A ResNet has none, nor has the mean over the patches.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import numpy as np
import pandas

from cxrjax import parallel
from cxrjax.evals import pictures
from cxrjax.evals.base import Encoder, Result
from cxrjax.evals.features import fetch, share
from cxrjax.evals.predictions import choose, quality
from cxrjax.input.source import Source
from cxrjax.models import regions
from cxrjax.models.vit import ViT

MOST = 4
"""Pictures of each kind that get a map: best, median and worst ones, as a results page chooses them."""


def maps(encode: Callable[..., Mapping[str, jax.Array]], by_head: bool = False) -> Callable[..., jax.Array | None]:
    """(params, state, images b h w 1) -> b p q float32, or None where encode's "pooled" is no [CLS] of a ViT.

    by_head: one map of each head, b heads p q, in place of their mean.

    encode: of a method. Its own pass is watched, so that its preprocessing and parameters are the judged ones.
    """

    def mapped(params, state, images):
        seen = []

        def watch(run, given, named, context):
            of_vit = isinstance(context.module, ViT) and context.method_name == "__call__"
            if not of_vit or named.get("drop_cls") or not context.module.cls_token:
                return run(*given, **named)
            module, (_, height, width, _) = context.module, given[0].shape
            out = run(*given, **{**named, "intermediates": True})
            grid = height // module.patch_px, width // module.patch_px
            found = regions.attention_of_heads(module, module.variables["params"], out["blocks"], grid)
            found = found.reshape(*found.shape[:2], *grid)
            seen.append((out["cls"], found if by_head else found.mean(axis=1)))
            return out

        with nn.intercept_methods(watch):
            pooled = encode(params, state, images)["pooled"]
        return next((found for cls, found in seen if cls is pooled), None)

    return mapped


def add(encoder: Encoder, test: Source, result: Result, limit_bytes: float) -> Result:
    """The result with maps of the pictures that a results page may show, in the column overlay/map (see `examples`).

    What the map is stands in the details, under "map". Without a map the result is returned as it is.
    """
    # Results pages show the middle of a picture, so a map of another part of it would lie in the wrong place.
    if encoder.attention is None or encoder.sees != pictures.IMAGE or not isinstance(encoder.image_px, int):
        return result
    table = result.predictions
    chosen = choose(quality(table).values, MOST)
    rows = [row for of_kind in chosen.values() for row in of_kind]
    if not rows:
        return result
    places = pandas.Index(test.table["image_id"]).get_indexer(table["image_id"].iloc[rows])
    few = Source(test.converted_set, test.split, test.positions[places])
    own, size = share(few, len(few), encoder.mesh)
    (images,) = pictures.batches(own, encoder.image_px, size, limit_bytes=limit_bytes)
    found = encoder.attention(images if encoder.mesh is None else parallel.to_global(images, encoder.mesh))
    if found is None:
        return result
    found = fetch(found)
    column = np.full(len(table), None, object)
    for row, one in zip(rows, found, strict=False):  # the batch is filled up
        column[row] = one.astype(float).tolist()
    what = (
        "how much [CLS] attends to each patch in the encoder's last block, mean over the heads "
        f"({1 / found[0].size:.2g} would be even)"
    )
    return result._replace(predictions=table.assign(**{"overlay/map": column}), details={**result.details, "map": what})
