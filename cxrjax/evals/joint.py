"""Pictures and texts in the space that an encoder shares between them, for the judges that compare the two."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from cxrjax import parallel
from cxrjax.evals.base import Encoder, FeatureTable, Ids, Joint, digest

TOKENS = ("ids", "text_mask", "word_index")


def of(encoder: Encoder) -> Joint:
    """The encoder's shared space; raises ValueError for an encoder without one."""
    if encoder.joint is None:
        raise ValueError(
            f"{encoder.name!r} was not trained with reports, so its pictures cannot be compared with texts; judge a "
            "run of a method that was, such as convirt, or the folder of a CLIP with its tokenizer.json, and leave "
            "'pixels' out of the references"
        )
    return encoder.joint


def pictures(encoder: Encoder) -> Encoder:
    """The encoder whose pooled features are the pictures' places in the shared space, for `features.features`."""
    return encoder._replace(encode=of(encoder).image, digest=digest(encoder.digest, "joint"))


def texts(encoder: Encoder, sentences: Sequence[str], batch_size: int, of_words: bool = False) -> np.ndarray:
    """Places n d of n texts in the shared space, float32 of unit length.

    of_words: the mean over the vectors of a text's words, which is shorter, in place of the text as a whole.
    batch_size: texts at once on all devices together, rounded up to a multiple of their number; one shape serves.
    """
    shared = of(encoder)
    rows = [shared.tokens(sentence) for sentence in sentences]
    devices = 1 if encoder.mesh is None else parallel.num_devices(encoder.mesh)
    size = -(-batch_size // devices) * devices
    processes, own = jax.process_count(), jax.process_index()
    share, found = size // processes, []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        part = (part + part[-1:] * (size - len(part)))[own * share : (own + 1) * share]
        batch = {name: np.stack([row[name] for row in part]) for name in TOKENS}
        batch = batch if encoder.mesh is None else parallel.to_global(batch, encoder.mesh)
        answer = shared.text(*(batch[name] for name in TOKENS))
        placed = answer["pooled"]
        if of_words:
            placed = answer["words"].sum(axis=1) / answer["word_mask"].sum(axis=1, keepdims=True).clip(1)
        found.append(np.asarray(placed if processes == 1 else multihost_utils.process_allgather(placed, tiled=True)))
    return finite(np.concatenate(found)[: len(rows)].astype(np.float32), sentences, "texts")


def finite(vectors: np.ndarray, names: Ids, what: str) -> np.ndarray:
    """The vectors n d; raises ValueError, naming the first, where some are not numbers."""
    broken = np.asarray(~np.isfinite(vectors).all(axis=1))
    if broken.any():
        raise ValueError(
            f"{broken.sum()} of {len(broken)} {what} have features that are NaN or infinite, "
            f"{names[int(broken.argmax())]!r} is the first; the encoder is broken or its training has diverged"
        )
    return vectors


def checked(table: FeatureTable, split: str) -> FeatureTable:
    """The table; raises ValueError where a picture's features are not numbers."""
    finite(table.features, table.image_ids, f"{split} pictures")
    return table
