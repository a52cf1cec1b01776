"""The picture towers of Hugging Face `CLIPModel` and `SiglipModel`, and of their vision models alone, into our ViT.

CLIP has a LayerNorm before its blocks and no bias in its patch embedding; SigLIP has no [CLS], and a learned query that
attends to the patches. Vectors are those before the projection to the space of the texts: `pooler_output` of the vision
model. Patches are those of the last LayerNorm, which transformers lets only CLIP's [CLS] go through. Towers of texts
are read by torch_clip_text.py.
"""

from collections.abc import Mapping
from typing import Any

from cxrjax.interop import vit_reader
from cxrjax.interop.arrays import Arrays
from cxrjax.interop.huggingface import Pretrained
from cxrjax.interop.torch_vit import variant_of
from cxrjax.models import vit

MODEL_TYPES = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
"""Of config.json -> ours."""
DEFAULTS = {
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "patch_size": 16},
}
"""What transformers takes where a config.json leaves it out; beside width 768, depth and heads 12, and MLPs of 3072."""
_BESIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_", "embeddings.position_ids")
_CLIP = vit_reader.Names(
    patch="embeddings.patch_embedding",
    cls="embeddings.class_embedding",
    positions="embeddings.position_embedding.weight",
    norm="post_layernorm",
    pre_norm="pre_layrnorm",
    layer="encoder.layers.{}.",
    norms=("layer_norm1", "layer_norm2"),
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    prefixes=("vision_model.",),
    beside=_BESIDE,
)
_SIGLIP = _CLIP._replace(cls="", pre_norm="", beside=(*_BESIDE, "head.", "classifier."))


def options(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.model that a folder asks for; raises ValueError for sizes and activations that ours lack."""
    config, is_clip = _vision(pretrained.config), _is_clip(pretrained.config)
    found = {
        "variant": variant_of(config),
        "patch_px": config["patch_size"],
        "positions": "learned",
        "eps": config["layer_norm_eps"],
        "activation": activation(config),
        "mlp_ratio": vit_reader.ratio(config["intermediate_size"], config["hidden_size"]),
    }
    if is_clip:
        return {**found, "pre_norm": True}
    return {**found, "cls_token": False, "pool": "attention"}


def load(wanted: Any, pretrained: Pretrained, model: Mapping[str, Any], mean: float, std: float) -> dict[str, Any]:
    """The encoder's tree; arguments and errors as of `vit_reader.load`."""
    found = vit_reader.load(wanted, pretrained, model, names(pretrained.config), mean, std)
    if "pool" in wanted:
        found["pool"] = _pool(pretrained, vit.VARIANTS[model["variant"]].width)
    return found


def _pool(pretrained: Pretrained, width: int) -> dict[str, Any]:
    arrays = Arrays(vit_reader.encoder_arrays(pretrained.weights, _SIGLIP), 0)
    packed = arrays.take("head.attention.in_proj_weight", 3 * width, width).T
    bias = arrays.take("head.attention.in_proj_bias", 3 * width)
    norm = {"scale": arrays.take("head.layernorm.weight", width), "bias": arrays.take("head.layernorm.bias", width)}
    return {
        "probe": arrays.take("head.probe", 1, 1, width)[0, 0],
        "q": {"kernel": packed[:, :width], "bias": bias[:width]},
        "kv": {"kernel": packed[:, width:], "bias": bias[width:]},
        "out": vit_reader.linear(arrays, "head.attention.out_proj", width),
        "norm": norm,
        "mlp": {name: vit_reader.linear(arrays, f"head.mlp.{name}", None) for name in ("fc1", "fc2")},
    }


def names(config: Mapping[str, Any]) -> vit_reader.Names:
    """Of the picture tower's arrays; those of a text tower's layers are the same."""
    return _CLIP if _is_clip(config) else _SIGLIP


def activation(config: Mapping[str, Any]) -> str:
    """Our word for the hidden_act of a tower's config; raises ValueError for one that ours lack."""
    if config["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"The model uses hidden_act={config['hidden_act']!r}; ours know {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[config["hidden_act"]]


def _is_clip(config: Mapping[str, Any]) -> bool:
    return config["model_type"].startswith("clip")


def _vision(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that is of the pictures, with what transformers takes where it is left out."""
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    return {**sizes, **DEFAULTS["clip" if _is_clip(config) else "siglip"], **config.get("vision_config", config)}
