"""Hugging Face `DeiTModel`, alone or under a classifier, into our ViT: its distillation token is a register with a
position, which is added to it."""

from collections.abc import Mapping
from typing import Any

from cxrjax.interop import vit_reader
from cxrjax.interop.huggingface import Pretrained
from cxrjax.interop.torch_vit import QKV, variant_of

MODEL_TYPES = ("deit",)
DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "patch_size": 16,
}
"""What transformers takes where a config.json leaves it out."""
NAMES = vit_reader.Names(
    patch="embeddings.patch_embeddings.projection",
    cls="embeddings.cls_token",
    tokens="embeddings.distillation_token",
    positions="embeddings.position_embeddings",
    norm="layernorm",
    layer="encoder.layer.{}.",
    norms=("layernorm_before", "layernorm_after"),
    qkv=QKV,
    out="attention.output.dense",
    mlp=("intermediate.dense", "output.dense"),
    prefixes=("deit.",),
    beside=("pooler.", "classifier.", "cls_classifier.", "distillation_classifier.", "embeddings.mask_token"),
)


def options(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.model that a folder asks for; raises ValueError for sizes and activations that ours lack."""
    config = {**DEFAULTS, **pretrained.config}
    if config["hidden_act"] != "gelu":
        raise ValueError(f"The model uses hidden_act={config['hidden_act']!r}; DeiT is read with gelu only.")
    return {
        "variant": variant_of(config),
        "patch_px": config["patch_size"],
        "positions": "learned",
        "registers": 1,
        "eps": config["layer_norm_eps"],
        "mlp_ratio": vit_reader.ratio(config["intermediate_size"], config["hidden_size"]),
    }


def load(wanted: Any, pretrained: Pretrained, model: Mapping[str, Any], mean: float, std: float) -> dict[str, Any]:
    """The encoder's tree; arguments and errors as of `vit_reader.load`."""
    return vit_reader.load(wanted, pretrained, model, NAMES, mean, std)
