"""Hugging Face's `VisionTextDualEncoderModel`: an encoder of pictures, a BERT or RoBERTa, and a projection of each.

    u = W_v p(x),  w = W_t q(y),  logits = e^s u · w          x, y: what stands for the picture, and [CLS] of the text

u and w are of unit length. p and q are the poolers of both, tanh of a linear layer, where a model has one: BERTs do,
and ViTs; of CLIP, SigLIP, DINOv2 and ConvNeXt the vector is x. Parameters are named as in torch_clip_text.py, with
"pooler" beside "projection".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.interop import torch_bert, vit_reader
from cxrjax.interop.arrays import Arrays
from cxrjax.interop.huggingface import Pretrained

MODEL_TYPE = "vision-text-dual-encoder"
VISION, TEXT = "vision_model.", "text_model."
PARTS = (TEXT, "text_projection", "visual_projection", "logit_", f"{VISION}pooler.")
LENGTH = 256
"""The most tokens that are read of a text, which are more than those of nearly all reports."""
WITH_POOLER = ("vit", "deit")
INSIDE = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""What transformers makes of a vision_config of these."""


def picture(whole: Pretrained) -> Pretrained:
    """The encoder of the pictures by itself."""
    arrays = {name.removeprefix(VISION): array for name, array in whole.weights.items() if name.startswith(VISION)}
    config = dict(whole.config.get("vision_config") or {})
    kind = config.get("model_type", "")
    return whole._replace(weights=arrays, config={**config, "model_type": INSIDE.get(kind, kind)}, whole=whole)


def settings(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.text that a folder decides on; raises ValueError as `torch_bert.check` does."""
    text = _text(pretrained)
    torch_bert.check(Path("text_config"), text.config)
    fields = torch_bert.fields(text.config)
    return {"kind": "bert", **fields, "length": min(fields["max_length"], LENGTH), "dtype": "float32"}


def pad_id(pretrained: Pretrained) -> int:
    return _text(pretrained).config.get("pad_token_id") or 0


def load(pretrained: Pretrained) -> dict[str, Any]:
    """The parameters of the text encoder and of the space; raises ValueError where an array is absent."""
    assert pretrained.whole is not None
    arrays, activation = Arrays(pretrained.whole.weights, 0), pretrained.config.get("pooler_act", "tanh")
    if activation != "tanh":
        raise ValueError(f"The picture's pooler has the activation {activation!r}; ours has 'tanh' only.")
    return {
        "text": torch_bert.from_huggingface(_text(pretrained)),
        "image_head": _head(arrays, VISION, "visual_projection", pretrained.config["model_type"] in WITH_POOLER),
        "text_head": _head(arrays, TEXT, "text_projection", True),
        "log_scale": arrays.numbers("logit_scale").reshape(()),
    }


def _head(arrays: Arrays, place: str, projection: str, pooled: bool) -> dict[str, Any]:
    found = {"pooler": vit_reader.linear(arrays, f"{place}pooler.dense", None)} if pooled else {}
    return {**found, "projection": vit_reader.linear(arrays, projection, None)}


def _text(pretrained: Pretrained) -> torch_bert.Pretrained:
    assert pretrained.whole is not None
    config: Mapping[str, Any] = pretrained.whole.config.get("text_config") or {}
    weights: Mapping[str, np.ndarray] = pretrained.whole.weights
    return torch_bert.Pretrained(torch_bert.encoder(Path("The model"), weights), config)
