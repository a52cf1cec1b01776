"""Whether a folder that was written gives the features of the encoder that it was written from, and by how much not."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cxrjax import sizes, trained
from cxrjax.input import device
from cxrjax.interop import classifier, head_files, huggingface, joint, onnx_file, torch_timm
from cxrjax.models import backbone, detection


class Parity(NamedTuple):
    """Largest difference between our features and logits and those of what was written, and what was compared."""

    difference: float
    largest: float  # largest feature or logit, for scale
    pictures: int
    through: str = "transformers"  # what computed theirs


def can_compare() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def compare(model: trained.Trained, folder: str | Path) -> Parity:
    """Features of the method's `encode` against those of the loaded folder, through its own processor's scale.

    The pictures are computed: noise, two ramps, discs and black, of the size that the folder's processor gives.
    """
    images = pictures(size(folder))
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(model.method.encode)(model.params, model.state, images[..., None])
        found, through = features(folder, images, model.config.model.get("pool", "cls"))
    differences = [np.abs(ours[name] - array).max() for name, array in found.items()]
    largest = max(np.abs(array).max() for array in found.values())
    return Parity(float(np.max(differences)), float(largest), len(images), through)


def features(folder: str | Path, images: np.ndarray, pool: str) -> tuple[dict[str, np.ndarray], str]:
    """What a folder makes of grey pictures b h w of its size, and what computed it.

    pool: which vector of a ViT stands for the picture, a word of config.model. Returns "pooled" b d, "patches" b p q d
    and of a head "logits" b c, as users of PyTorch have them.
    """
    config = json.loads((Path(folder) / huggingface.CONFIG).read_text())
    if config.get("model_type") == head_files.GATED:
        return _of_gates(folder, images), joint.CODE
    if not torch_timm.is_named(config):
        return _of_transformers(folder, images, pool), "transformers"
    if timm_works():
        return _of_timm(folder, images), "timm"
    return _read_back(folder, images, pool), "cxrjax, which read it again"


def size(folder: str | Path) -> tuple[int, int]:
    """Height and width of the pictures that a folder's encoder takes."""
    config = json.loads((Path(folder) / huggingface.CONFIG).read_text())
    named = torch_timm.is_named(config)
    return sizes.sides(config["pretrained_cfg"]["input_size"][1:] if named else config["image_size"])


def timm_works() -> bool:
    """Whether timm can be imported; beside a torchvision that was built for another torch it cannot."""
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError):
        return False
    return True


def _of_timm(folder: str | Path, images: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    timm: Any = importlib.import_module("timm")  # which no extra of ours installs
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    cfg = model.pretrained_cfg
    scaled = (images[:, None] / 255 - cfg["mean"][0]) / cfg["std"][0]
    with torch.inference_mode():
        out = model.forward_features(torch.from_numpy(scaled).float().repeat(1, cfg["input_size"][0], 1, 1))
        found = {"pooled": model.forward_head(out, pre_logits=True).numpy()}
        if model.num_classes:
            found["logits"] = model.forward_head(out).numpy()
    if out.ndim == 4:
        return found | {"patches": out.permute(0, 2, 3, 1).numpy()}
    patches = out[:, model.num_prefix_tokens :].numpy()
    return found | {"patches": patches.reshape(len(images), *model.patch_embed.grid_size, -1)}


def _read_back(folder: str | Path, images: np.ndarray, pool: str) -> dict[str, np.ndarray]:
    """By our own reader, which knows no head and not which vector stands for the picture."""
    again = trained.load(folder)
    found = jax.jit(again.method.encode)(again.params, again.state, images[..., None])
    chosen = ["patches"] if pool == "mean" else ["pooled", "patches"]
    return {name: np.asarray(found[name]) for name in chosen}


def _of_transformers(folder: str | Path, images: np.ndarray, pool: str) -> dict[str, np.ndarray]:
    import torch
    import transformers
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    config = json.loads((Path(folder) / huggingface.CONFIG).read_text())
    with torch.inference_mode():
        # The pictures have the encoder's size: what a processor does to larger ones would change them.
        as_they_are = {"do_resize": False, "do_center_crop": False}
        inputs = processor([Image.fromarray(image) for image in images], return_tensors="pt", **as_they_are)
        found = {}
        if classifier.is_attached(config):
            whole = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
            found["logits"] = whole(**inputs).logits.numpy()
        if config["model_type"] == "resnet":
            out = transformers.ResNetModel.from_pretrained(folder).eval()(**inputs)
            maps = out.last_hidden_state.permute(0, 2, 3, 1).numpy()
            return found | {"pooled": out.pooler_output.flatten(1).numpy(), "patches": maps}
        if config["model_type"] == "vit":
            model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
        else:
            model = transformers.AutoModel.from_pretrained(folder)
        tokens = model.eval()(**inputs).last_hidden_state.numpy()
    registers = config.get("num_register_tokens", 0)
    tokens = np.concatenate([tokens[:, :1], tokens[:, 1 + registers :]], axis=1)
    grid = sizes.grid(config["image_size"], config["patch_size"])
    pooled = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(axis=1)
    return found | {"pooled": pooled, "patches": tokens[:, 1:].reshape(len(images), *grid, -1)}


def pictures(px: sizes.Px) -> np.ndarray:
    """Noise, two ramps, discs and black: uint8 b h w."""
    shape = height, width = sizes.sides(px)
    row, column = np.mgrid[:height, :width]
    discs = 128 + 60 * np.sin(row / height * 7) * np.cos(column / width * 9)
    noise = np.random.default_rng(0).integers(0, 256, shape)
    ramps = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    pictures = [noise, *(np.broadcast_to(ramp, shape) for ramp in ramps), discs, 0 * noise]
    return np.stack(pictures).astype(np.uint8)


def compare_joint(model: trained.Trained, folder: Path) -> float:
    """The largest difference between our vectors in the joint space and those of the folder's own modeling.py.

    Pictures as in `compare`; tokens are drawn, of several lengths.
    """
    import torch

    assert model.method.joint is not None
    theirs, space, text = modeling(folder).Joint(folder).eval(), model.method.joint, model.config.text
    images = pictures(size(folder))
    ids, mask, index = _tokens(theirs.kinds.numpy(), text.length)
    pixels = _pixels(folder, images)
    with jax.default_matmul_precision("highest"), torch.inference_mode():
        seen = jax.jit(space.image)(model.params, model.state, images[..., None])
        read = jax.jit(space.text)(model.params, model.state, ids, mask, index)
        u, patches = theirs.image(pixels)
        w, words, _ = theirs.text(torch.from_numpy(ids).long(), torch.from_numpy(mask))
    pairs = [(seen["pooled"], u), (seen["patches"], patches), (read["pooled"], w)]
    pairs.append((read["words"][:, : words.shape[1]], words[:, : read["words"].shape[1]]))
    return float(max(np.abs(ours - other.numpy()).max() for ours, other in pairs))


def compare_head(model: trained.Trained, folder: Path) -> float:
    """The largest difference between our masks or candidate boxes and those of the folder's own modeling.py.

    Logits of masks count in the largest one where that is above 1. Pictures as in `compare`.
    """
    import torch

    theirs = getattr(modeling(folder), head_files.CLASSES[model.config.method])(folder).eval()
    images = pictures(size(folder))
    with torch.inference_mode():
        if model.config.method == "segment":
            found = [theirs(_pixels(folder, images)).numpy()]
        else:
            found = [array.numpy() for array in theirs.candidates(_pixels(folder, images))]
    with jax.default_matmul_precision("highest"):
        if model.config.method == "segment":
            ours = [jax.jit(model.method.encode)(model.params, model.state, images[..., None])["mask_logits"][..., 0]]
        else:
            ours = list(_candidates(model, images))
    pairs = zip(ours, found, strict=True)
    return float(max(np.abs(one - other).max() / max(1.0, np.abs(other).max()) for one, other in pairs))


def _candidates(model: trained.Trained, images: np.ndarray) -> detection.Candidates:
    """Boxes and scores before any is suppressed: equal scores would be kept in another order."""
    encoder, stats = backbone.make(model.config.model), model.state["batch_stats"]
    assert model.method.answers is not None
    head = detection.make(model.config.head, encoder, len(model.method.answers.names))

    @jax.jit
    def candidates(params, state, images):
        x = device.standardise(images, **model.config.standardise)
        y, _ = encoder.apply(model.method.encoder(params, state), stats["encoder"], x, train=False, levels=head.levels)
        return head.decode(head.apply(params["head"], stats["head"], y, False)[0])

    return candidates(model.params, model.state, images[..., None])


def _of_gates(folder: str | Path, images: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    with torch.inference_mode():
        pooled, patches = modeling(folder).Gated(folder).eval()(_pixels(folder, images))
    return {"pooled": pooled.numpy(), "patches": patches.numpy()}


def modeling(folder: str | Path) -> Any:
    """The module in a folder's modeling.py, which we wrote."""
    spec = importlib.util.spec_from_file_location("modeling", Path(folder) / joint.CODE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pixels(folder: str | Path, images: np.ndarray) -> Any:
    """Grey pictures b h w of a folder's size as its processor scales them: a tensor b 3 h w."""
    import torch

    scale = json.loads((Path(folder) / huggingface.PREPROCESSOR).read_text())
    scaled = (images[:, None] / 255 - scale["image_mean"][0]) / scale["image_std"][0]
    return torch.from_numpy(scaled).float().repeat(1, 3, 1, 1)


def compare_onnx(folder: Path, pool: str) -> tuple[float, float]:
    """The largest difference between a folder through onnxruntime and through transformers, and the largest number.

    pool: as of `features`.
    """
    shown = pictures(size(folder))
    found, _ = features(folder, shown, pool)
    theirs = onnx_file.run(folder, _pixels(folder, shown).numpy())
    differences = [np.abs(theirs[name] - array).max() for name, array in found.items()]
    return float(np.max(differences)), float(max(np.abs(array).max() for array in found.values()))


def _tokens(kinds: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, mask and word_index b l of texts of drawn pieces, as `Joint.tokens` gives them.

    kinds: of the vocabulary, 0 begins a word, 1 continues one, 2 is none.
    """
    rng, lengths = np.random.default_rng(0), [length, length // 2, 4, 3]
    ids, index = np.zeros((4, length), np.int32), np.full((4, length), -1, np.int32)
    for row, count in enumerate(lengths):
        pieces = rng.choice(np.flatnonzero(kinds < 2), count - 2)
        pieces[0] = np.flatnonzero(kinds == 0)[0]
        ids[row, 1 : count - 1] = pieces
        index[row, 1 : count - 1] = np.cumsum(kinds[pieces] == 0) - 1
        ids[row, [0, count - 1]] = np.flatnonzero(kinds == 2)[[1, 2]]
    return ids, np.arange(length) < np.array(lengths)[:, None], index
