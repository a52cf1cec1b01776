"""Hugging Face `DINOv3ViTModel` into our ViT: rotary positions, registers, LayerScale, gated MLPs where they are used.

Keys have no bias there, which is a bias of 0 here. The token of hidden patches is not read.
"""

from collections.abc import Mapping
from typing import Any

from cxrjax.interop import vit_reader
from cxrjax.interop.huggingface import Pretrained
from cxrjax.interop.torch_vit import variant_of

MODEL_TYPES = ("dinov3_vit",)
DEFAULTS = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "patch_size": 16,
    "num_register_tokens": 0,
    "layerscale_value": 1.0,
    "use_gated_mlp": False,
}
"""What transformers takes where a config.json leaves it out."""
_NAMES = vit_reader.Names(
    patch="embeddings.patch_embeddings",
    cls="embeddings.cls_token",
    tokens="embeddings.register_tokens",
    positions="",
    norm="norm",
    layer="layer.{}.",
    norms=("norm1", "norm2"),
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.o_proj",
    mlp=("mlp.up_proj", "mlp.down_proj"),
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    prefixes=("dinov3_vit.", "model."),
    beside=("embeddings.mask_token", "classifier.", "inv_freq", "rope_embeddings."),
)


def options(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.model that a folder asks for; raises ValueError for sizes and activations that ours lack."""
    config = {**DEFAULTS, **pretrained.config}
    gated = config["use_gated_mlp"]
    if config["hidden_act"] != ("silu" if gated else "gelu"):
        raise ValueError(
            f"The model uses hidden_act={config['hidden_act']!r} with use_gated_mlp={gated}; ours has silu in gated "
            "MLPs and gelu in others."
        )
    width, hidden = config["hidden_size"], config["intermediate_size"]
    if gated and hidden % 8:
        raise ValueError(f"The model's gated MLPs are {hidden} wide; ours are multiples of 8.")
    return {
        "variant": variant_of(config),
        "patch_px": config["patch_size"],
        "positions": "rope",
        "rope_base": float(config["rope_theta"]),
        "registers": config["num_register_tokens"],
        "layer_scale": config["layerscale_value"],
        "eps": config["layer_norm_eps"],
        "ffn": "swiglu" if gated else "mlp",
        "mlp_ratio": vit_reader.ratio(3 * hidden // 2 if gated else hidden, width),
    }


def load(wanted: Any, pretrained: Pretrained, model: Mapping[str, Any], mean: float, std: float) -> dict[str, Any]:
    """The encoder's tree; arguments and errors as of `vit_reader.load`."""
    gated = model.get("ffn") == "swiglu"
    names = _NAMES._replace(mlp=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")) if gated else _NAMES
    # transformers 5.20 and newer keep the layers one level deeper.
    deeper = any(name.removeprefix("dinov3_vit.").startswith("model.layer.") for name in pretrained.weights)
    names = names._replace(layer="model.layer.{}.") if deeper else names
    return vit_reader.load(wanted, pretrained, model, names, mean, std)
