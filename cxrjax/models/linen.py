"""Linen modules without running statistics, as plain functions of their parameters."""

from typing import Any

import flax.linen as nn
import jax


def init(module: nn.Module, key: jax.Array, *inputs: Any, **options: Any) -> Any:
    """The parameters that a module starts from, for inputs of these shapes: a dictionary of arrays."""
    return module.init(key, *inputs, **options)["params"]


def apply(module: nn.Module, params: Any, *inputs: Any, **options: Any) -> Any:
    """What the module makes of its inputs with these parameters."""
    return module.apply({"params": params}, *inputs, **options)
