"""The arrays that a checkpoint holds and those that are expected, by name."""

from typing import Any

import jax
import jax.numpy as jnp


class CheckpointMismatch(ValueError):
    """What is stored and what is expected differ; the message names the leaves."""


def shapes(tree: Any) -> dict[str, tuple]:
    """{"params/encoder/cls": (shape, dtype)} of the arrays of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): (tuple(leaf.shape), jnp.dtype(leaf.dtype).name)
        for keys, leaf in leaves
    }


def compare(path: Any, stored: dict, expected: dict, partial: bool, most: int = 20) -> None:
    """Raises CheckpointMismatch with the first `most` leaves of `path` that are not as expected; see `shapes`."""
    missing = [name for name in expected if name not in stored]
    unexpected = [] if partial else [name for name in stored if name not in expected]
    different = [name for name in expected if name in stored and stored[name] != expected[name]]
    lines = [f"missing     {name} {_shape(expected[name])}" for name in missing]
    lines += [f"unexpected  {name} {_shape(stored[name])}" for name in unexpected]
    lines += [f"different   {name} {_shape(stored[name])} != {_shape(expected[name])} expected" for name in different]
    if not lines:
        return
    more = [f"… and {len(lines) - most} more"] if len(lines) > most else []
    raise CheckpointMismatch(
        "\n  ".join(
            [
                f"{path} does not hold what this config expects: of {len(expected)} arrays {len(missing)} missing and "
                f"{len(different)} different, {len(unexpected)} unexpected; use the config.json it was made with",
                *lines[:most],
                *more,
            ]
        )
    )


def _shape(leaf: tuple) -> str:
    shape, dtype = leaf
    return f"{dtype}[{','.join(map(str, shape))}]"
