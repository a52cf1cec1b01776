"""What a training step costs, counted in the traced program and, beside it, in closed form.

The unit is the multiply–accumulate (MAC) of matrix products and convolutions, for one picture through the whole
pre-training forward: all views, networks, heads. It is what papers call "GFLOPs" (ViT-B/16 = 17.56 G); floating-point
operations are twice that. Not counted: biases, norms, softmax, GELU, gathers, and products between the pictures of a
batch (the B × B logits), which losses mark with the name scope `pairwise`; these are returned apart.

    python -m cxrjax.speed.flops        prints the table of pre-training methods as Markdown
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from cxrjax import sizes
from cxrjax.models import vit

PAIRWISE = "pairwise"


class Macs(NamedTuple):
    """Multiply–accumulates of a program: those of single pictures, and those between the pictures of a batch."""

    single: int
    pairwise: int


def count(function: Callable, *args: Any) -> Macs:
    """Counts every matrix product and convolution of `function(*args)`, which is traced and not run.

    args: arrays or ShapeDtypeStructs. Loops of known length count their body that many times, branches their dearest
    arm. Raises ValueError where a kernel hides its products, or a loop of unknown length contains some.
    """
    (jaxpr,) = _jaxprs(jax.make_jaxpr(function)(*args))
    return _jaxpr(jaxpr, pairwise=False)


def _jaxpr(jaxpr, pairwise: bool) -> Macs:
    total = Macs(0, 0)
    for equation in jaxpr.eqns:
        total = _add(total, _equation(equation, pairwise))
    return total


def _equation(equation, pairwise: bool) -> Macs:
    name, params = equation.primitive.name, equation.params
    # A name stack is relative to the enclosing jaxpr, and shows transformations as "transpose(jvp(pairwise))".
    pairwise = pairwise or PAIRWISE in str(equation.source_info.name_stack)
    if name in ("dot_general", "conv_general_dilated"):
        macs = (_dot if name == "dot_general" else _convolution)(equation)
        return Macs(0, macs) if pairwise else Macs(macs, 0)
    inner = [_jaxpr(jaxpr, pairwise) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "scan":
        return _times(inner[0], params["length"])
    if name == "shard_map":
        return _times(inner[0], math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]))
    if name == "cond":
        return max(inner, key=sum)
    if name == "while" and any(map(sum, inner)):
        raise ValueError("a loop of unknown length holds matrix products: write it as lax.scan to have it counted")
    if any(word in name for word in ("pallas", "cudnn", "dot_product_attention", "ragged_dot", "custom_call", "ffi")):
        raise ValueError(f"the kernel {name!r} hides its matrix products: count the same function without it")
    for macs in inner[1:]:
        inner[0] = _add(inner[0], macs)
    return inner[0] if inner else Macs(0, 0)


def _jaxprs(value) -> list:
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


def _dot(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation) -> int:
    """Products with padding count, as in every published figure; those with zeros put in by a dilation do not."""
    params = equation.params
    numbers = params["dimension_numbers"]
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    macs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for axis in range(len(out) - 2):
        place = np.arange(out[numbers.out_spec[2 + axis]]) * params["window_strides"][axis] - params["padding"][axis][0]
        tap = np.arange(kernel[numbers.rhs_spec[2 + axis]]) * params["rhs_dilation"][axis]
        macs *= int(np.sum((place[:, None] + tap) % params["lhs_dilation"][axis] == 0))
    return macs


def _add(a: Macs, b: Macs) -> Macs:
    return Macs(a.single + b.single, a.pairwise + b.pairwise)


def _times(a: Macs, factor: int) -> Macs:
    return Macs(a.single * factor, a.pairwise * factor)


class Cost(NamedTuple):
    """Closed form for one picture: MACs of the pre-training forward, and of forward and backward together.

    A path that is trained costs three forwards, less one of the patch embedding, whose pictures need no gradient; a
    path without gradient costs one.
    """

    forward: int
    train: int


class Encoder(NamedTuple):
    """A ViT on n tokens without [CLS]; patch is the number of values in a patch, P·P·C."""

    width: int
    depth: int
    n: int
    patch: int

    def embed(self, n: int) -> int:
        return n * self.width * self.patch

    def whole(self) -> int:
        """Plain forward of the complete picture: 17 563 060 224 for ViT-B/16 at 224 px in three channels."""
        return self.embed(self.n) + blocks(self.n + 1, self.width, self.depth)


def encoder(variant: str, image_px: sizes.Px = 224, patch_px: int = 16, channels: int = 3) -> Encoder:
    size = vit.VARIANTS[variant]
    return Encoder(size.width, size.depth, math.prod(sizes.grid(image_px, patch_px)), patch_px**2 * channels)


def blocks(n: int, d: int, depth: int) -> int:
    """Transformer blocks on n tokens: 12nd² for the six d × d products of a token, 2n²d for attention."""
    return depth * (12 * n * d * d + 2 * n * n * d)


def spcl(
    encoder: Encoder, k_a: int, k_b: int, head: int = 0, embedded: int | None = None, cls_shortcut: bool = False
) -> Cost:
    """S-PCL: two parts of k_a and k_b tokens through one encoder.

    head: MACs of the projection head for one view. embedded: patches that are embedded (default all n).
    cls_shortcut: the last block answers the [CLS] query only.
    """
    n_embedded = encoder.n if embedded is None else embedded
    forward = encoder.embed(n_embedded) + 2 * head
    for n in (k_a + 1, k_b + 1):
        forward += blocks(n, encoder.width, encoder.depth - cls_shortcut)
        if cls_shortcut:
            forward += (2 * n + 10) * encoder.width**2 + 2 * n * encoder.width
    return Cost(forward, 3 * forward - encoder.embed(n_embedded))


def simclr(encoder: Encoder, head: int | None = None) -> Cost:
    """SimCLR: two views of all tokens. head: MACs of one view's head (default width → width → 128)."""
    head = encoder.width**2 + 128 * encoder.width if head is None else head
    forward = 2 * (encoder.whole() + head)
    return Cost(forward, 3 * forward - 2 * encoder.embed(encoder.n))


def moco_v3(encoder: Encoder, hidden: int = 4096, out: int = 256) -> Cost:
    """MoCo v3: two views through the trained encoder, projector and predictor, and through the momentum copy."""
    projector = encoder.width * hidden + hidden**2 + out * hidden
    predictor = 2 * out * hidden
    trained = 2 * (encoder.whole() + projector + predictor)
    momentum = 2 * (encoder.whole() + projector)
    return Cost(trained + momentum, 3 * trained - 2 * encoder.embed(encoder.n) + momentum)


def mae(
    encoder: Encoder, kept: int, decoder_width: int = 512, decoder_depth: int = 8, embedded: int | None = None
) -> Cost:
    """MAE: `kept` tokens through the encoder, all through the decoder. embedded: patches that are (default all n)."""
    n, d = encoder.n, encoder.width
    n_embedded = n if embedded is None else embedded
    forward = encoder.embed(n_embedded) + blocks(kept + 1, d, encoder.depth) + (kept + 1) * d * decoder_width
    forward += blocks(n + 1, decoder_width, decoder_depth) + (n + 1) * decoder_width * encoder.patch
    return Cost(forward, 3 * forward - encoder.embed(n_embedded))


def spcxr(encoder: Encoder) -> Cost:
    """SPCXR without SiT's term: two views of all tokens, and GMML's head on the patches of each."""
    head = encoder.n * (3 * encoder.width**2 + encoder.width * encoder.patch)
    forward = 2 * (encoder.whole() + head)
    return Cost(forward, 3 * forward - 2 * encoder.embed(encoder.n))


def table(variants: tuple[str, ...] = ("S", "B", "L")) -> str:
    """GMAC per picture of the pre-training forward, Markdown: 224 px, patches of 16 px, three channels."""
    rows = {
        "plain encoder": lambda e: e.whole(),
        "S-PCL, ρ = 1": lambda e: spcl(e, 98, 98).forward,
        "S-PCL, ρ = 0.5": lambda e: spcl(e, 49, 49).forward,
        "S-PCL, ρ = 0.2": lambda e: spcl(e, 19, 19).forward,
        "SimCLR, head d-d-128": lambda e: simclr(e).forward,
        "MoCo v3": lambda e: moco_v3(e).forward,
        "SPCXR": lambda e: spcxr(e).forward,
        "MAE, 75 % masked, 8-block decoder": lambda e: mae(e, 49).forward,
        "MAE, 75 % masked, 2-block decoder": lambda e: mae(e, 49, decoder_depth=2).forward,
        "MAE, 90 % masked, 8-block decoder": lambda e: mae(e, 19).forward,
        "MAE, 90 % masked, 2-block decoder": lambda e: mae(e, 19, decoder_depth=2).forward,
    }
    names = " | ".join(f"ViT-{v}/16" for v in variants)
    lines = [f"| GMAC per picture | {names} |", "| --- |" + " ---: |" * len(variants)]
    for name, cost in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{cost(encoder(v)) / 1e9:.3f}' for v in variants)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
