"""Low-rank adapters of a Vision Transformer (LoRA; Hu et al., ICLR 2022): W + (α/r) A B, of which A and B are learned.

symbol  here       meaning
W       kernel     of a linear layer of the blocks, i o, kept as it was trained
A, B    "a", "b"   i r and r o, of rank r; A starts as normal noise of deviation 1/√i, B as 0
α/r     scale      how much their product counts

Since B starts as 0, the network starts as it was. Whoever runs it is given the sums in the place of the kernels, so no
model knows of this, and what is saved elsewhere is a plain network. Queries, keys and values are one layer here, so
they share A. The paper adapts queries and values alone; which layers are adapted is a setting.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cxrjax import rng

KERNELS = ("attention/qkv", "attention/out", "mlp/fc1", "mlp/fc2")
"""Linear layers of a block."""


def init(key: jax.Array, params: Mapping[str, Any], rank: int, kernels: Sequence[str] = KERNELS) -> dict[str, Any]:
    """A and B of each kernel that is named, as {"blocks": {"attention": {"qkv": {"a": l i r, "b": l r o}}, …}}.

    params: of a `vit.ViT`, whose l blocks are stacked. Raises ValueError for a name that is none of KERNELS, for none
    at all, and for a rank that is not below both sides of a kernel.
    """
    unknown = [name for name in kernels if name not in KERNELS]
    if unknown or not kernels:
        raise ValueError(f"lora.kernels names {unknown or 'nothing'}; choose of {', '.join(KERNELS)}")
    found: dict[str, Any] = {}
    for name in kernels:
        part, layer = name.split("/")
        depth, into, out = params["blocks"][part][layer]["kernel"].shape
        if rank >= min(into, out):
            raise ValueError(f"lora.rank={rank} saves nothing beside {name} of {into} x {out}; give a rank below both")
        a = jax.random.normal(rng.fold(key, name), (depth, into, rank)) / into**0.5
        found.setdefault(part, {})[layer] = {"a": a, "b": jnp.zeros((depth, rank, out))}
    return {"blocks": found}


def merged(params: Mapping[str, Any], learned: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The parameters of the whole network, with W + scale·A B in the place of each adapted kernel W."""
    blocks = dict(params["blocks"])
    for part, layers in learned["blocks"].items():
        blocks[part] = dict(blocks[part])
        for name, pair in layers.items():
            layer = blocks[part][name]
            # In full precision also where products are not: an exported kernel is added up elsewhere.
            product = jnp.einsum("lir,lro->lio", pair["a"], pair["b"], precision="highest")
            blocks[part][name] = {**layer, "kernel": layer["kernel"] + scale * product}
    return {**params, "blocks": blocks}
