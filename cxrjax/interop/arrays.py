"""What readers and writers of ViTs share: arrays of the shapes asked for, and one tree held against another."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# What a checkpoint may carry beside the encoder, and that an encoder does not need.
IGNORED = ("pooler.", "classifier.", "decoder.", "lm_head.", "mask_token", "embeddings.mask_token")


class Arrays:
    """A model's arrays, each of the shape that is asked for; one that is absent or of another shape is a ValueError."""

    def __init__(self, weights: Mapping[str, np.ndarray], layers: int):
        self.weights, self.layers = weights, layers
        self.used: set[str] = set()

    def take(self, name: str, *shape: int) -> np.ndarray:
        if name not in self.weights:
            there = f"it has {len(self.weights)}, such as {sorted(self.weights)[:4]}"
            raise ValueError(f"The model has no array {name!r}; {there}.")
        if self.weights[name].shape != shape:
            raise ValueError(f"{name} has the shape {self.weights[name].shape}; its config.json asks for {shape}.")
        self.used.add(name)
        return np.asarray(self.weights[name], np.float32)

    def numbers(self, name: str) -> np.ndarray:
        """An array of any shape."""
        return self.take(name, *(self.weights[name].shape if name in self.weights else ()))

    def stack(self, part: str, leaf: str, *shape: int) -> np.ndarray:
        """The same array of every layer, on a new first axis."""
        return np.stack([self.take(f"encoder.layer.{i}.{part}.{leaf}", *shape) for i in range(self.layers)])

    def linear(self, part: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        kernel = self.stack(part, "weight", outputs, inputs).swapaxes(1, 2)
        return {"kernel": kernel, "bias": self.stack(part, "bias", outputs)}

    def norm(self, part: str, width: int) -> dict[str, np.ndarray]:
        return {"scale": self.stack(part, "weight", width), "bias": self.stack(part, "bias", width)}

    def width_of(self, name: str) -> int:
        """The length of the first axis of an array, which no config.json tells."""
        if name not in self.weights:
            raise ValueError(f"The model has no array {name!r}; it has {sorted(self.weights)[:4]} and others.")
        return self.weights[name].shape[0]

    def unused(self) -> list[str]:
        """The names of the arrays that nothing took, without those that an encoder does not need."""
        return sorted(name for name in self.weights if name not in self.used and not name.startswith(IGNORED))


def channels_wanted(wanted: Mapping[str, Any], config: Mapping[str, Any], heads: int) -> int:
    """Channels of our patch embedding, one or three. wanted: our leaves' shapes by path; config: of the folder.

    Raises ValueError where our patches or heads are not the folder's.
    """
    patch_px = config["patch_size"]
    if wanted["patch_embed/kernel"][0] not in (patch_px**2, 3 * patch_px**2):
        raise ValueError(
            f"Our patch embedding has {wanted['patch_embed/kernel'][0]} inputs per patch; patches of {patch_px} px, "
            f"which the pre-trained model uses, have {patch_px**2} (grey) or {3 * patch_px**2}. "
            f"Set patch_px={patch_px} in the config, or start from another model."
        )
    if heads != config["num_attention_heads"]:
        raise ValueError(
            f"Our encoder has {heads} attention heads, the pre-trained model "
            f"{config['num_attention_heads']}; choose the variant that has as many."
        )
    return wanted["patch_embed/kernel"][0] // patch_px**2


def check_shapes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ValueError, naming every leaf that differs. found: a tree that was read; wanted: shapes by path."""
    shapes = flatten(found, shapes=True)
    differences = [
        f"{name}: ours {wanted.get(name, 'absent')}, pre-trained {shapes.get(name, 'absent')}"
        for name in sorted({*wanted, *shapes})
        if wanted.get(name) != shapes.get(name)
    ]
    if differences:
        raise ValueError(
            f"The pre-trained encoder does not fit ours in {len(differences)} parameters: "
            f"{'; '.join(differences[:20])}. Choose the variant and picture size of the pre-trained model."
        )


def channels_of(kernel: np.ndarray, patch_px: int) -> int:
    """Channels of a patch embedding P·P·C D. Raises ValueError where the patch does not fit."""
    channels, rest = divmod(kernel.shape[0], patch_px**2)
    if rest or not channels:
        raise ValueError(
            f"The patch embedding has {kernel.shape[0]} inputs per patch, which is no multiple of "
            f"{patch_px} x {patch_px} px; give the patch_px that the encoder was trained with."
        )
    return channels


def flatten(tree: Mapping[str, Any], prefix: str = "", shapes: bool = False) -> dict[str, Any]:
    """Leaves by path "a/b/c": float32 arrays, or their shapes."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/", shapes)
        else:
            flat[f"{prefix}{key}"] = tuple(value.shape) if shapes else np.asarray(value, np.float32)
    return flat
