"""The text towers of Hugging Face `CLIPModel` and `SiglipModel`, and the space that they share with the pictures.

    CLIP     u = W_v x,  w = W_t y,     logits = e^s u · w           x, y: [CLS] and the end token; u, w of unit length
    SigLIP   u = x,      w = W_t y + c,  logits = e^s u · w + b      x, y: of the pool, and the last place

Parameters: "text", of `models.text_transformer`; "image_head" and "text_head", {"projection"} or {}; "log_scale", and
"bias" of SigLIP.
"""

from collections.abc import Mapping
from typing import Any

from cxrjax.interop import torch_clip, vit_reader
from cxrjax.interop.arrays import Arrays
from cxrjax.interop.huggingface import Pretrained

MODEL_TYPES = ("clip", "siglip")
PARTS = ("text_model.", "text_projection", "visual_projection", "logit_")
SIZES = {
    "clip": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
    "siglip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "vocab_size": 32000,
        "max_position_embeddings": 64,
    },
}
"""What transformers takes where a text_config leaves it out; depth is 12 and the rest as of `torch_clip.DEFAULTS`."""


def settings(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.text that a folder decides on; raises ValueError for activations that ours lack."""
    kind, config = pretrained.config["model_type"], _text(pretrained.config)
    return {
        "kind": kind,
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "length": config["max_position_embeddings"],
        "mlp_ratio": vit_reader.ratio(config["intermediate_size"], config["hidden_size"]),
        "eps": config["layer_norm_eps"],
        "activation": torch_clip.activation(config),
        "dtype": "float32",
    }


def pad_id(pretrained: Pretrained) -> int:
    """What stands behind a text, where the tokenizer's files do not say."""
    return _text(pretrained.config).get("pad_token_id") or 1


def load(pretrained: Pretrained) -> dict[str, Any]:
    """The parameters of the text tower and of the space; raises ValueError where an array is absent or of another
    shape."""
    given, arrays = settings(pretrained), Arrays(pretrained.weights, 0)
    names = torch_clip.names(pretrained.config)._replace(layer="text_model.encoder.layers.{}.")
    width, place = given["width"], "text_model."
    arrays.layers = given["depth"]
    found: dict[str, Any] = {
        "text": {
            "word": arrays.take(f"{place}embeddings.token_embedding.weight", given["vocab_size"], width),
            "position": arrays.take(f"{place}embeddings.position_embedding.weight", given["length"], width),
            "blocks": vit_reader.blocks(arrays, names, width),
            "norm": vit_reader.norm(arrays, f"{place}final_layer_norm", width),
        },
        "image_head": {},
        "log_scale": arrays.numbers("logit_scale").reshape(()),
    }
    if given["kind"] == "clip":
        found["image_head"] = {"projection": vit_reader.linear(arrays, "visual_projection", None)}
        found["text_head"] = {"projection": vit_reader.linear(arrays, "text_projection", width)}
    else:
        found["text_head"] = {"projection": vit_reader.linear(arrays, f"{place}head", width)}
        found["bias"] = arrays.numbers("logit_bias").reshape(())
    of_space = [name for name in arrays.unused() if name.startswith(PARTS) and not name.endswith("position_ids")]
    if of_space:
        raise ValueError(f"The model has {len(of_space)} arrays of texts that ours has no place for: {of_space[:4]}.")
    return found


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config["model_type"]
    common = {"num_hidden_layers": 12, **SIZES[kind], **torch_clip.DEFAULTS[kind]}
    return {**common, **(config.get("text_config") or {})}
