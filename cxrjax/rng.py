"""Random streams by name and step: no key is ever split or stored, so a resumed run draws what the first one drew."""

import zlib

import jax


def fold(key: jax.Array, name: str, step: int | jax.Array | None = None) -> jax.Array:
    """The key of stream `name`, at `step` if one is given (an int or a traced int32 scalar).

    The name enters by its CRC-32, which unlike Python's `hash` is the same in every process.
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)
