"""The families of encoders that can be read from disk, by the model_type of their config.json.

A family says which of our encoders computes what the model computes, as keys of config.model, and fills its parameters.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from cxrjax import sizes
from cxrjax.interop import (
    huggingface,
    preprocessing,
    torch_clip,
    torch_clip_text,
    torch_convnext,
    torch_deit,
    torch_dinov2,
    torch_dinov3,
    torch_dual,
    torch_resnet,
    torch_swin,
    torch_timm,
    torch_vit,
    vit_reader,
)
from cxrjax.interop.huggingface import Pretrained
from cxrjax.models import posemb, transformer, vit
from cxrjax.text import folder_tokenizer

Model: TypeAlias = Mapping[str, Any]
BESIDE = ("text_model.", "text_projection", "visual_projection", "logit_", "decoder", "classifier.", "fc.", "pooler.")
"""Parts of models that are no part of an encoder, by what the names of their arrays contain."""


class Family(NamedTuple):
    """kind: which of our encoders it is, for messages: "ViT", "ResNet", "ConvNeXt" or "Swin".

    model: pretrained -> the keys of config.model that its arrays decide on, without image_px.
    load: (wanted, pretrained, model, mean, std) -> (params, running statistics). wanted: our encoder's tree, arrays or
    shapes; model: the whole config.model; mean, std: ours, which are folded into the first layer.
    """

    kind: str
    model: Callable[[Pretrained], dict[str, Any]]
    load: Callable[..., tuple[dict[str, Any], dict[str, Any]]]


class Space(NamedTuple):
    """What a family has beside its encoder of pictures: an encoder of texts, and the space that both share.

    text: pretrained -> the keys of config.text that its arrays decide on.
    load: pretrained -> the parameters of all of it, see `torch_clip_text`. pad_id: pretrained -> what stands behind a
    text, where its tokenizer does not say. parts: how the names of its arrays begin.
    """

    text: Callable[[Pretrained], dict[str, Any]]
    load: Callable[[Pretrained], dict[str, Any]]
    pad_id: Callable[[Pretrained], int]
    parts: tuple[str, ...]


def read(folder: str | Path) -> Pretrained:
    """The model in a folder or a file, of any known family; raises ValueError as the readers do."""
    place = Path(folder)
    config = {} if place.is_file() else preprocessing.json_of(place / huggingface.CONFIG)
    if place.is_file() or torch_timm.is_named(config):
        return torch_timm.read(place)
    if (kind := config.get("model_type")) in REFUSED:
        raise ValueError(f"{folder} holds a model of type {kind!r}: {REFUSED[kind]}.")
    known = [name for name in FAMILIES if name not in torch_timm.FIRST]
    found = huggingface.read(place, [*known, torch_dual.MODEL_TYPE])
    if found.config["model_type"] != torch_dual.MODEL_TYPE:
        return found
    part = torch_dual.picture(found)
    if part.config["model_type"] not in known:
        raise ValueError(
            f"{folder} has an encoder of pictures of type {part.config['model_type']!r}; expected {', '.join(known)}."
        )
    return part


def family(pretrained: Pretrained) -> Family:
    """The family of a model that `read` gave."""
    return FAMILIES[pretrained.config["model_type"]]


def space(pretrained: Pretrained, folder: str | Path) -> Space | None:
    """Of a model whose folder has texts and their tokenizer; None of others."""
    whole = pretrained if pretrained.whole is None else pretrained.whole
    found = SPACES.get(whole.config["model_type"])
    return found if found is not None and (Path(folder) / folder_tokenizer.FILE).is_file() else None


def model_of(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.model that a model decides on; image_px is the size that its preprocessing asks for."""
    config = pretrained.config.get("vision_config", pretrained.config)
    by_names = pretrained.config["model_type"] in torch_timm.FIRST
    px = torch_timm.image_px(pretrained) if by_names else config.get("image_size", 224)
    return {**family(pretrained).model(pretrained), "image_px": sizes.plain(pretrained.px or px)}


def unread(pretrained: Pretrained, space: Space | None = None) -> str:
    """What a model has beside its encoder and nobody reads here, by its parts: "pooler 2, text_model 37", or "".

    space: which is read as well.
    """
    read = () if space is None else space.parts
    whole = pretrained if pretrained.whole is None else pretrained.whole
    found = Counter(
        next((part for part in BESIDE if part in name), "")
        for name in whole.weights
        if not name.endswith(("num_batches_tracked", "position_ids")) and not name.startswith(read)
    )
    found.pop("", None)
    others = dict.fromkeys(pretrained.config.get("others", ()), 0)
    return ", ".join(f"{part.strip('.')} {count or ''}".strip() for part, count in sorted({**found, **others}.items()))


def _vit(pretrained: Pretrained) -> dict[str, Any]:
    found = {**torch_vit.size_of(pretrained.config), "positions": torch_vit.positions_of(pretrained)}
    config, width = pretrained.config, vit.VARIANTS[found["variant"]].width
    if (hidden := config.get("intermediate_size", 3072)) != 4 * width:
        found["mlp_ratio"] = vit_reader.ratio(hidden, width)
    eps = config.get("layer_norm_eps", 1e-12)
    return found if eps == transformer.LAYER_NORM_EPS else found | {"eps": eps}


def _load_vit(
    wanted: Any, pretrained: Pretrained, model: Model, mean: float, std: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    size, grid = vit.VARIANTS[model["variant"]], sizes.grid(model["image_px"], model["patch_px"])
    table = posemb.fixed(model["positions"], grid, size.width)
    sides = {"heads": size.heads, "image_px": model["image_px"]}
    return torch_vit.load_into(wanted, pretrained, **sides, mean=mean, std=std, position_table=table), {}


def _dinov2(pretrained: Pretrained) -> dict[str, Any]:
    return {**torch_vit.size_of(pretrained.config), **torch_dinov2.options(pretrained.config)}


def _load_dinov2(
    wanted: Any, pretrained: Pretrained, model: Model, mean: float, std: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    sides = {"heads": vit.VARIANTS[model["variant"]].heads, "image_px": model["image_px"]}
    return torch_dinov2.load_into(wanted, pretrained, **sides, mean=mean, std=std), {}


def _resnet(pretrained: Pretrained) -> dict[str, Any]:
    return {"variant": torch_resnet.variant_of(pretrained.config)}


def _load_resnet(
    wanted: Any, pretrained: Pretrained, model: Model, mean: float, std: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    channels = model.get("channels", 1)
    return torch_resnet.from_huggingface(pretrained, model["variant"], mean=mean, std=std, channels=channels)


def _reader(module: Any, kind: str = "ViT") -> Family:
    """Of a family that is a table of names."""

    def load(wanted, pretrained, model, mean, std):
        return module.load(wanted, pretrained, model, mean, std), {}

    return Family(kind, module.options, load)


def _resnet_by_names(pretrained: Pretrained) -> dict[str, Any]:
    return {"variant": torch_timm.variant_of_resnet(pretrained)}


def _load_resnet_by_names(
    wanted: Any, pretrained: Pretrained, model: Model, mean: float, std: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    return torch_timm.load_resnet(pretrained, model, mean, std)


FAMILIES = {
    "vit": Family("ViT", _vit, _load_vit),
    "vit_mae": Family("ViT", _vit, _load_vit),
    "dinov2": Family("ViT", _dinov2, _load_dinov2),
    "dinov2_with_registers": Family("ViT", _dinov2, _load_dinov2),
    **{name: _reader(torch_deit) for name in torch_deit.MODEL_TYPES},
    **{name: _reader(torch_dinov3) for name in torch_dinov3.MODEL_TYPES},
    **{name: _reader(torch_clip) for name in torch_clip.MODEL_TYPES},
    **{name: _reader(torch_convnext, "ConvNeXt") for name in torch_convnext.NAMES},
    "resnet": Family("ResNet", _resnet, _load_resnet),
    **{name: _reader(torch_swin, "Swin") for name in torch_swin.MODEL_TYPES},
    torch_timm.VIT: _reader(torch_timm),
    torch_timm.RESNET: Family("ResNet", _resnet_by_names, _load_resnet_by_names),
}
"""model_type of a config.json -> its family."""

_CLIP = Space(torch_clip_text.settings, torch_clip_text.load, torch_clip_text.pad_id, torch_clip_text.PARTS)
_DUAL = Space(torch_dual.settings, torch_dual.load, torch_dual.pad_id, torch_dual.PARTS)
SPACES = {**dict.fromkeys(torch_clip_text.MODEL_TYPES, _CLIP), torch_dual.MODEL_TYPE: _DUAL}
"""model_type of a config.json -> the space that its pictures and texts share."""
_BIAS = "it adds a table of relative positions to the attention of every block, which our ViT does not"
REFUSED = {
    "beit": _BIAS,
    "data2vec-vision": _BIAS,
    "swinv2": "it compares by cosines in windows, whose positions a small network gives, which our Swin does not",
    "siglip2": "it cuts pictures of any aspect into a bounded number of patches, which no processor here does; the "
    "checkpoints of SigLIP 2 for one size have the type 'siglip', which is read",
}
"""model_type of a config.json -> why it is not read."""
