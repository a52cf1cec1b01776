"""Our BERT to and from the folders of Hugging Face `BertModel`: Bio_ClinicalBERT, CXR-BERT, all-MiniLM and their like.

RoBERTa's are read as well: it computes the same, but its positions begin behind the number of its padding.

    pretrained = read("Bio_ClinicalBERT")
    model = Bert(**fields(pretrained.config, depth=6), frozen_layers=6)
    params = from_huggingface(pretrained, depth=6, frozen_layers=6)

Layouts (d width, L layers)

| ours                                | Hugging Face                                                         |
|-------------------------------------|----------------------------------------------------------------------|
| embeddings/word, embeddings/position| embeddings.{word,position}_embeddings.weight                         |
| embeddings/type (d)                 | embeddings.token_type_embeddings.weight (2, d), row 0                |
| layers/qkv/kernel (L, d, 3d)        | encoder.layer.<i>.attention.self.{query,key,value}.weight (d, d)      |
| other kernels (L, in, out)          | .weight (out, in)                                                    |
| norm scale, bias                    | .weight, .bias; LayerNorm.gamma, LayerNorm.beta in files of 2018     |

Whatever stands before these names ("bert." in a masked-language model) is taken off; poolers and heads are left out,
but for the projection of CXR-BERT (`Pretrained.projection`). Code that a folder carries (auto_map) is never run.
Safetensors are read by NumPy alone. pytorch_model.bin needs torch, which reads its weights and runs nothing in it.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from cxrjax.interop import huggingface
from cxrjax.interop.arrays import Arrays
from cxrjax.interop.huggingface import CONFIG, WEIGHTS
from cxrjax.interop.vit_reader import linear
from cxrjax.text import tokenizer

MODEL_TYPES = ("bert", "cxr-bert", "roberta")
PROJECTION = "cls_projection_head."
PARTS = {
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
QKV = ("query", "key", "value")
NORM = {"scale": "weight", "bias": "bias"}
# What stands beside the encoder under its own prefix, or under none, and that an encoder does not need.
IGNORED = ("pooler.", "cls.", "cls_projection_head.", "classifier.", "dropout.", "embeddings.position_ids")


class Pretrained(NamedTuple):
    """A BERT as it lies on disk: its encoder's arrays by name, without prefix, and its config.

    projection: of CXR-BERT, see `projection`; {} of others. heads: the parts beside the encoder, by name.
    """

    weights: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    projection: Mapping[str, Any] = MappingProxyType({})
    heads: tuple[str, ...] = ()


def read(folder: str | Path) -> Pretrained:
    """Reads config.json and the weights of a folder; of the latter see `huggingface.weights`.

    Raises:
      ValueError: a file is missing or broken, or it is another kind of model than ours.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} has no {CONFIG}; expected a local folder as `save_pretrained` writes it. "
            "Models on a hub are downloaded first."
        )
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    check(folder, config)
    weights = huggingface.weights(folder)
    heads = tuple(part.strip(".") for part in IGNORED[:4] if any(f".{part}" in f".{name}" for name in weights))
    return Pretrained(encoder(folder, weights), config, projection(weights), heads)


def projection(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The head that CXR-BERT's [CLS] goes through to meet pictures and other texts, {} where there is none.

    It is a linear layer "hidden", the exact GELU, "norm" with ε = 1e-12 and a linear layer "output" (Boecking et al.,
    ECCV 2022, and the code of BiomedVLP-CXR-BERT-specialized). Raises ValueError where a part is missing.
    """
    arrays = Arrays(weights, 0)
    if not any(name.startswith(PROJECTION) for name in weights):
        return {}
    hidden = linear(arrays, f"{PROJECTION}dense_to_hidden", None)
    width = hidden["bias"].shape[0]
    norm = {ours: arrays.take(f"{PROJECTION}LayerNorm.{theirs}", width) for ours, theirs in NORM.items()}
    return {"hidden": hidden, "norm": norm, "output": linear(arrays, f"{PROJECTION}dense_to_output", width)}


def fields(config: Mapping[str, Any], depth: int | None = None) -> dict[str, Any]:
    """The fields of `models.bert.Bert` that compute what the folder's model does; depth: how many layers to keep."""
    return {
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "depth": _depth(config, depth),
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "max_length": config["max_position_embeddings"] - _first(config),
        "eps": config.get("layer_norm_eps", 1e-12),
    }


def from_huggingface(
    source: str | Path | Pretrained, *, depth: int | None = None, frozen_layers: int = 0
) -> dict[str, Any]:
    """Reads a Hugging Face BERT into the tree of `Bert(**fields(config, depth), frozen_layers=frozen_layers)`.

    Args:
      source: a folder, or what `read` returned.
      depth: how many of its layers to keep, the first ones; by default all.

    Returns:
      float32 arrays.

    Raises:
      ValueError: it is no plain BERT, or its arrays do not fit its config; they are named.
    """
    pretrained = source if isinstance(source, Pretrained) else read(source)
    config, weights = pretrained.config, pretrained.weights
    layers = _depth(config, depth)
    if not 0 <= frozen_layers <= layers:
        raise ValueError(f"frozen_layers is {frozen_layers}; of {layers} layers 0 to {layers} can be frozen.")
    _compare(_shapes(config), weights)

    def layer(name):
        return {"kernel": _float32(weights[f"{name}.weight"]).T, "bias": _float32(weights[f"{name}.bias"])}

    def norm(name):
        return {"scale": _float32(weights[f"{name}.weight"]), "bias": _float32(weights[f"{name}.bias"])}

    def block(i):
        place = f"encoder.layer.{i}."
        qkv = [layer(f"{place}attention.self.{name}") for name in QKV]
        parts = {ours: (norm if ours.startswith("norm") else layer)(place + name) for ours, name in PARTS.items()}
        return {"qkv": {leaf: np.concatenate([part[leaf] for part in qkv], -1) for leaf in qkv[0]}, **parts}

    def stack(numbers: Iterable[int]):
        blocks = [block(i) for i in numbers]
        return {
            part: {leaf: np.stack([one[part][leaf] for one in blocks]) for leaf in blocks[0][part]}
            for part in blocks[0]
        }

    params = {
        "embeddings": {
            "word": _float32(weights["embeddings.word_embeddings.weight"]),
            "position": _float32(weights["embeddings.position_embeddings.weight"])[_first(config) :],
            "type": _float32(weights["embeddings.token_type_embeddings.weight"])[0],
            "norm": norm("embeddings.LayerNorm"),
        }
    }
    if frozen_layers:
        params["lower"] = stack(range(frozen_layers))
    if frozen_layers < layers:
        params["layers"] = stack(range(frozen_layers, layers))
    return params


def load_into(params: Mapping[str, Any], source: str | Path | Pretrained, *, heads: int, eps: float = 1e-12) -> dict:
    """Returns a tree of the structure of `params` filled from a Hugging Face BERT, to start training from it.

    Args:
      params: our encoder's whole tree, arrays or shapes; says how many layers are kept and how many are apart. Of the
        folder's positions the first ones are taken, if ours are fewer.
      heads, eps: of our encoder; shapes do not show them, and others would compute other features.

    Raises:
      ValueError: the two encoders differ; every leaf that does is named.
    """
    pretrained = source if isinstance(source, Pretrained) else read(source)
    counts = {name: params[name]["norm1"]["scale"].shape[0] if name in params else 0 for name in ("lower", "layers")}
    theirs = fields(pretrained.config, sum(counts.values()))
    if heads != theirs["heads"] or not math.isclose(eps, theirs["eps"]):
        raise ValueError(
            f"Our encoder has {heads} attention heads and a LayerNorm epsilon of {eps}, the pre-trained model "
            f"{theirs['heads']} and {theirs['eps']}; choose the same."
        )
    found = from_huggingface(pretrained, depth=theirs["depth"], frozen_layers=counts["lower"])
    positions = params["embeddings"]["position"].shape[0]
    found["embeddings"]["position"] = found["embeddings"]["position"][:positions]
    wanted, shapes = ({name: leaf.shape for name, leaf in _flatten(tree)} for tree in (params, found))
    differences = [
        f"{name}: ours {wanted.get(name, 'absent')}, pre-trained {shapes.get(name, 'absent')}"
        for name in sorted(wanted | shapes)
        if wanted.get(name) != shapes.get(name)
    ]
    if differences:
        raise ValueError(
            f"The pre-trained text encoder does not fit ours in {len(differences)} parameters: "
            f"{'; '.join(differences[:20])}. Choose the variant of its size, and "
            f"vocab_size={theirs['vocab_size']} with its vocab.txt as the tokenizer."
        )
    return found


def to_huggingface(
    params: Mapping[str, Any], *, heads: int, eps: float = 1e-12
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Writes our post-norm encoder, frozen layers included, in the names and layouts of `BertModel`.

    A second kind of token, which ours never sees, gets the vector of the first.

    Returns:
      Arrays by name, and the content of `config.json`.

    Raises:
      ValueError: it is no tree of a post-norm BERT, or heads do not divide its width.
    """
    stacks = [params[name] for name in ("lower", "layers") if name in params]
    if "embeddings" not in params or not stacks or "norm" in params:
        raise ValueError(
            f"This is not the tree of a post-norm BERT: it has {sorted(params)}; expected embeddings and layers, and "
            "no last norm, for which `BertModel` has no place. Give the text encoder's whole subtree."
        )
    table = {name: _float32(leaf) for name, leaf in _flatten(params["embeddings"])}
    weights = {
        "embeddings.word_embeddings.weight": table["word"],
        "embeddings.position_embeddings.weight": table["position"],
        "embeddings.token_type_embeddings.weight": np.stack([table["type"]] * 2),
        "embeddings.LayerNorm.weight": table["norm/scale"],
        "embeddings.LayerNorm.bias": table["norm/bias"],
    }
    blocks = [
        {name: _float32(leaf[i]) for name, leaf in _flatten(stack)}
        for stack in stacks
        for i in range(len(stack["norm1"]["scale"]))
    ]
    for i, block in enumerate(blocks):
        weights |= {f"encoder.layer.{i}.{name}": array for name, array in _layer(block).items()}
    (vocab_size, width), positions = table["word"].shape, len(table["position"])
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide the encoder's width {width}.")
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads,
        "intermediate_size": blocks[0]["fc1/bias"].shape[0],
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "hidden_act": "gelu",
        "layer_norm_eps": eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
    }
    # safetensors writes the buffer as it lies in memory, so a transposed view must be copied first.
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}, config


def _layer(block: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one of our blocks by the names below encoder.layer.<i>."""
    weights = {}
    kernels, biases = (np.split(block[f"qkv/{leaf}"], 3, axis=-1) for leaf in ("kernel", "bias"))
    for name, kernel, bias in zip(QKV, kernels, biases, strict=True):
        weights[f"attention.self.{name}.weight"] = kernel.T
        weights[f"attention.self.{name}.bias"] = bias
    for ours, theirs in PARTS.items():
        kernel = block[f"{ours}/scale"] if ours.startswith("norm") else block[f"{ours}/kernel"].T
        weights[f"{theirs}.weight"], weights[f"{theirs}.bias"] = kernel, block[f"{ours}/bias"]
    return weights


def write(
    folder: str | Path, params: Mapping[str, Any], words: tokenizer.Tokenizer, *, heads: int, eps: float = 1e-12
) -> None:
    """Writes config.json, model.safetensors, vocab.txt and tokenizer_config.json, which AutoModel and ours read.

    Raises:
      ValueError: as `to_huggingface`, or the vocabulary has more pieces than the encoder has words.
    """
    folder = Path(folder)
    weights, config = to_huggingface(params, heads=heads, eps=eps)
    if words.vocab_size > config["vocab_size"]:
        raise ValueError(
            f"The vocabulary has {words.vocab_size} pieces, but the encoder only {config['vocab_size']} word "
            "embeddings; give the tokenizer that it was trained with."
        )
    tokenizer.save(words.vocabulary, folder, words.lowercase)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    # `save_file` would leave a file that only its owner may read.
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(weights, metadata={"format": "pt"}))


def check(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for a config.json of another kind of model than ours."""
    # Configs of 2019 and before do not say what they are; their arrays do.
    kind = config.get("model_type", MODEL_TYPES[0])
    if kind not in MODEL_TYPES:
        raise ValueError(f"{folder} holds a model of type {kind!r}; expected {' or '.join(MODEL_TYPES)}.")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(
            f"{folder} has position_embedding_type={config['position_embedding_type']!r}; our BERT computes absolute "
            "positions only."
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            f"{folder} uses hidden_act={config['hidden_act']!r}; our BERT computes the exact GELU ('gelu') only."
        )
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    absent = [name for name in (*needed, "max_position_embeddings") if name not in config]
    if absent:
        raise ValueError(f"{folder / CONFIG} lacks {', '.join(absent)}, without which the model cannot be built.")


def encoder(folder: Path, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the encoder, by names of today and without prefix; raises ValueError where there is not one."""
    marker = "embeddings.word_embeddings.weight"
    prefixes = [name.removesuffix(marker) for name in weights if name.endswith(marker)]
    if len(prefixes) != 1:
        raise ValueError(
            f"{folder} has {len(prefixes)} arrays named …{marker}; expected the one of a BERT. It has {len(weights)} "
            f"arrays, such as {sorted(weights)[:4]}."
        )
    found = {}
    for name, array in weights.items():
        if name.startswith(prefixes[0]) and not name.removeprefix(prefixes[0]).startswith(IGNORED):
            name = name.removeprefix(prefixes[0])
            found[name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = (
                array
            )
    return found


def _first(config: Mapping[str, Any]) -> int:
    """The row of the positions that the first token has."""
    return config.get("pad_token_id", 1) + 1 if config.get("model_type") == "roberta" else 0


def _depth(config: Mapping[str, Any], depth: int | None) -> int:
    layers = config["num_hidden_layers"]
    if depth is not None and not 1 <= depth <= layers:
        raise ValueError(
            f"depth is {depth}; the pre-trained model has {layers} layers, of which 1 to {layers} can be kept."
        )
    return depth or layers


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of every array that a BERT of this config has."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config.get("type_vocab_size", 2), width),
    }
    parts = {f"attention.self.{name}": (width, width) for name in QKV}
    parts |= {PARTS["out"]: (width, width), PARTS["fc1"]: (hidden, width), PARTS["fc2"]: (width, hidden)}
    parts |= {PARTS["norm1"]: (width,), PARTS["norm2"]: (width,)}
    layers = range(config["num_hidden_layers"])
    named = {f"encoder.layer.{i}.{part}": shape for i in layers for part, shape in parts.items()}
    for name, shape in {"embeddings.LayerNorm": (width,), **named}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _compare(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray]) -> None:
    missing = sorted(set(shapes) - set(weights))
    if missing:
        raise ValueError(f"The model lacks {len(missing)} of BERT's arrays, such as {missing[:4]}.")
    unused = sorted(set(weights) - set(shapes))
    if unused:
        raise ValueError(f"The model has {len(unused)} arrays that our BERT has no place for, such as {unused[:4]}.")
    wrong = [
        f"{name} {weights[name].shape} instead of {shapes[name]}"
        for name in shapes
        if weights[name].shape != shapes[name]
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} arrays differ in shape from what config.json says: {'; '.join(wrong[:4])}.")


def _float32(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves with their paths "a/b/c"."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
