"""Write a trained encoder as a folder that PyTorch users load.

    python -m cxrjax.export --checkpoint WORKDIR --output FOLDER [--form transformers|timm|onnx]
                            [--step latest|best|N] [--overwrite]
    python -m cxrjax.export --check FOLDER

The folder holds config.json, model.safetensors, preprocessor_config.json, README.md (the model card) and lineage.json
(what it was trained on, and what that started from: `lineage`), and loads with
`transformers.ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)`. A ViT with LayerScale is a DINOv2 and loads
with `AutoModel`, a ResNet with `transformers.ResNetModel.from_pretrained(FOLDER)`. A run with answers leaves its head
too: the same folder loads with `AutoModelForImageClassification`, but for a ViT whose head reads the mean of the
patches, which has no such class. A method that learns from reports also leaves its text encoder, in FOLDER/text, for
`transformers.BertModel` and `BertTokenizer`, and all but FaNE the space of both: modeling.py, a file of plain torch,
with joint.safetensors. Heads of segmentation and detection, and MLVICX's gates, also are a modeling.py, with
head.safetensors. Where torch and transformers are installed, the features of both sides are compared before anything is
put in place, and so are the logits of a head, masks, boxes, and the vectors in the joint space; nothing is written if
they differ.

With --form timm the names and config.json are timm's, for `timm.create_model("local-dir:FOLDER", pretrained=True)`;
where timm is not installed, the folder is read back by cxrjax and compared.

With --form onnx the folder for transformers also has model.onnx, made through torch (extra `onnx`). What onnxruntime
computes is compared as well where it is installed.

--check loads a folder as its users do, without a network, and says what it is.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import exported, lineage, model_card, sizes, trained
from cxrjax.interop import (
    classifier,
    head_files,
    huggingface,
    joint,
    onnx_file,
    timm_folder,
    torch_bert,
    torch_dinov2,
    torch_resnet,
    torch_vit,
)
from cxrjax.models import backbone, bert, posemb, regions, resnet, text_tower, transformer, vit
from cxrjax.parity import Parity, can_compare, compare, compare_head, compare_joint, compare_onnx
from cxrjax.text import tokenizer

TOLERANCE = 1e-4
TEXT = "text"
CARD = "README.md"
HEADS = ("segment", "detect")
FORMS = ("transformers", "timm", "onnx")


def export(
    checkpoint: str | Path,
    output: str | Path,
    step: int | str = "latest",
    overwrite: bool = False,
    form: str = "transformers",
) -> Parity | None:
    """Writes the encoder of a checkpoint as a folder with a model card, in one of FORMS.

    checkpoint, step: as in `trained.load`. overwrite: replaces files of these names in a folder that is not empty.
    Returns the measured parity, or None where torch or transformers is not installed, which timm's form does not need.
    Raises ValueError: the encoder is neither a ViT nor a ResNet, `output` is not empty, or features differ by more than
    1e-4, counted in the largest feature where that is above 1 (a ResNet's have no fixed scale).
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not overwrite:
        raise ValueError(f"{output} is there already and not empty; give another --output, or --overwrite.")
    # float32 throughout: the weights are, and PyTorch users compute in it unless they ask for less.
    model = trained.load(checkpoint, step, dtype="float32")
    if form not in FORMS:
        raise ValueError(f"There is no form {form!r}; there are {', '.join(FORMS)}.")
    weights, config = encoder_weights(model, with_gates=form == "transformers")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
        if form == "timm":
            write_timm(model, weights, config, Path(folder))
        elif config["model_type"] in torch_dinov2.MODEL_TYPES and not isinstance(config["image_size"], int):
            raise ValueError(
                f"The encoder is a DINOv2 of pictures of {sizes.said(config['image_size'])} px, and transformers takes "
                "its positions for those of squares; take --form timm."
            )
        else:
            weights, config = with_head(model, weights, config)
            scale = model.config.standardise
            huggingface.write(folder, weights, config, scale.mean, scale.std, model.method.sees)
            if form == "transformers" and (model.config.method in HEADS or head_files.has_gates(model.config)):
                write_head(model, Path(folder))
            if form == "onnx":
                write_onnx(model, Path(folder))
        parity = compare(model, folder) if form == "timm" or can_compare() else None
        allowed = TOLERANCE * max(1.0, parity.largest) if parity else TOLERANCE
        if parity is not None and not parity.difference <= allowed:
            raise ValueError(
                f"PyTorch's features differ from ours by up to {parity.difference:.3g}, more than {allowed:.3g}; "
                f"nothing was written. The method {model.config.method!r} may encode with other parameters than "
                "params['encoder'], with more than a plain ViT or ResNet, or after other preprocessing."
            )
        of_timm = json.loads((Path(folder) / huggingface.CONFIG).read_text()) if form == "timm" else None
        if TEXT in model.config:
            write_text(model, Path(folder) / TEXT)
            if form != "timm" and model.config.method in joint.PLACES:
                write_joint(model, Path(folder))
        entries = lineage.whole(model.config, model.workdir, model.step)
        (Path(folder) / lineage.FILE).write_text(json.dumps(entries, indent=2) + "\n")
        beside = exported.beside(folder)
        (Path(folder) / CARD).write_text(model_card.text(model, config, parity, entries, of_timm, beside))
        output.mkdir(exist_ok=True)
        shutil.rmtree(output / TEXT, ignore_errors=True)
        for name in (
            huggingface.PREPROCESSOR,
            onnx_file.FILE,
            *joint.FILES,
            *head_files.FILES,
        ):  # of an earlier export in another form
            (output / name).unlink(missing_ok=True)
        for file in sorted(Path(folder).iterdir()):
            file.replace(output / file.name)
    return parity


def encoder_weights(model: trained.Trained, with_gates: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights by Hugging Face name and the content of config.json, for the encoder of a trained model.

    with_gates: whether its gates are written as well, else a model that has some is refused.
    """
    architecture, standardise = model.config.model, model.config.standardise
    variant = architecture.variant
    if (variant not in vit.VARIANTS and variant not in resnet.VARIANTS) or "encoder" not in model.params:
        raise ValueError(
            f"The method {model.config.method!r} has no ViT or ResNet at params['encoder']; only these can be exported."
        )
    if standardise.mode != "fixed":
        raise ValueError(
            f"The encoder was trained with standardise.mode={standardise.mode!r}, which a Hugging Face processor "
            "cannot do; only 'fixed' can be exported."
        )
    if head_files.has_gates(model.config) and not with_gates:
        raise ValueError(
            f"The method {model.config.method!r} encodes through the gates that it was trained with, which only the "
            "form 'transformers' has, in modeling.py. A run with --config.strip_gates=True (the same training, judged "
            "without them) can be exported in every form."
        )
    if variant in vit.VARIANTS and (others := _not_of_a_vit(architecture)):
        raise ValueError(
            f"The encoder has {', '.join(others)}, which no ViT of Hugging Face has that is written here. Take its "
            "features by cxrjax.embed, or from Python by cxrjax.load"
        )
    params = model.method.encoder(model.params, model.state)
    if variant in resnet.VARIANTS:
        statistics = model.state["batch_stats"]["encoder"]
        # Where a method enlarges its pictures, the network itself takes the enlarged ones.
        enlarge_px = model.config.regions.enlarge_px if "regions" in model.config else 0
        image_px = regions.enlarged_px(architecture.image_px, enlarge_px) if enlarge_px else architecture.image_px
        return torch_resnet.to_huggingface(params, statistics, variant=variant, image_px=image_px)
    size, grid = vit.VARIANTS[variant], sizes.grid(architecture.image_px, architecture.patch_px)
    sides = {"heads": size.heads, "patch_px": architecture.patch_px, "image_px": architecture.image_px}
    if "layer_scale1" in params["blocks"]:
        return torch_dinov2.to_huggingface(params, **sides, model=architecture)
    params = {name: tree for name, tree in params.items() if name != "mask_token"}  # which no whole picture meets
    if "cls_pos" in params:
        params["cls"] = params["cls"] + params.pop("cls_pos")
    return torch_vit.to_huggingface(
        params,
        **sides,
        position_table=posemb.fixed(architecture.positions, grid, size.width),
        eps=architecture.get("eps", transformer.LAYER_NORM_EPS),
    )


def _not_of_a_vit(architecture: Any) -> list[str]:
    """The keys of config.model, with their values, that ViTModel and Dinov2Model do not compute."""
    there = {"pool": ("cls", "mean"), "positions": posemb.KINDS, "pre_norm": (False,), "cls_token": (True,)}
    there |= {"activation": ("gelu",)}
    if architecture.get("layer_scale") is None:
        there |= {"ffn": ("mlp",), "registers": (0,)}
    given = {key: architecture.get(key, known[0]) for key, known in there.items()}
    return [f"model.{key}={value!r}" for key, value in given.items() if value not in there[key]]


def with_head(
    model: trained.Trained, weights: dict[str, np.ndarray], config: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights and config.json of an encoder with the trained head, or as they are where no classifier is like it."""
    answers, pool = model.method.answers, model.config.model.get("pool", "")
    if answers is None or answers.kind not in classifier.PROBLEMS or not classifier.fits(config, pool):
        return weights, config
    return classifier.attach(weights, config, model.params["head"], answers.names, answers.kind, pool)


def write_timm(model: trained.Trained, weights: dict[str, np.ndarray], config: dict[str, Any], folder: Path) -> None:
    """Writes the folder for timm, with the head of answers; weights and config as of `encoder_weights`."""
    answers, scale, head = model.method.answers, model.config.standardise, None
    if answers is not None and answers.kind in classifier.PROBLEMS:
        of_run = model.params["head"]
        head = timm_folder.Head(np.asarray(of_run["kernel"]), np.asarray(of_run["bias"]), answers.names)
    described = {"pool": model.config.model.get("pool", "cls"), "sees": model.method.sees, "head": head}
    timm_folder.write(folder, weights, config, mean=scale.mean, std=scale.std, **described)


def write_text(model: trained.Trained, folder: Path) -> None:
    """Writes the text encoder and its vocabulary as a Hugging Face folder.

    Raises ValueError where the run's vocabulary is gone, or its token vectors in PyTorch differ by more than 1e-4.
    """
    text = model.config.text
    frozen = model.state.get("frozen", {}).get(TEXT, {})
    params, heads = {**model.params[TEXT], **frozen}, bert.VARIANTS[text.variant].heads
    torch_bert.write(folder, params, tokenizer.load(model.workdir), heads=heads)
    if not can_compare():
        return
    import torch
    import transformers

    ids = np.random.default_rng(0).integers(1, text.vocab_size, (4, text.length)).astype(np.int32)
    mask = np.arange(text.length) < np.array([text.length, text.length // 2, 3, 2])[:, None]
    with jax.default_matmul_precision("highest"):
        tower = text_tower.make({**text, "dtype": "float32"})
        ours = np.asarray(tower.apply(model.params[TEXT], frozen, ids, mask)["tokens"])
    with torch.inference_mode():
        theirs = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()(
            torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask)
        )
    difference = np.abs(ours - theirs.last_hidden_state.numpy())[mask].max()
    if not difference <= TOLERANCE:
        raise ValueError(f"PyTorch's token vectors differ from ours by up to {difference:.3g}; nothing was written.")


def write_joint(model: trained.Trained, folder: Path) -> None:
    """Writes the space of pictures and reports beside both encoders, for torch.

    Raises ValueError where its vectors in PyTorch differ by more than 1e-4.
    """
    joint.write(folder, model.config, model.params, model.state["batch_stats"])
    if not can_compare():
        return
    difference = compare_joint(model, folder)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"PyTorch's vectors in the joint space differ from ours by up to {difference:.3g}; nothing was written."
        )


def write_head(model: trained.Trained, folder: Path) -> None:
    """Writes a head of segmentation or detection, or MLVICX's gates, beside the encoder, for torch.

    Raises ValueError where masks or boxes in PyTorch differ by more than 1e-4; gates are part of what `compare` sees.
    """
    gated, stats = model.config.method not in HEADS, model.state["batch_stats"]
    learned = (model.params["gates"], {}) if gated else (model.params["head"], stats["head"])
    names = model.method.answers.names if model.method.answers else ()
    head_files.write(folder, model.config, backbone.make(model.config.model), *learned, names)
    if gated or not can_compare():
        return
    difference = compare_head(model, folder)
    if not difference <= TOLERANCE:
        raise ValueError(f"PyTorch's masks or boxes differ from ours by up to {difference:.3g}; nothing was written.")


def write_onnx(model: trained.Trained, folder: Path) -> None:
    """Writes model.onnx beside the weights for transformers.

    Raises ValueError where onnxruntime is installed and computes something else than PyTorch.
    """
    pool = model.config.model.get("pool", "cls")
    onnx_file.write(folder, pool)
    if not importlib.util.find_spec("onnxruntime"):
        return
    difference, largest = compare_onnx(folder, pool)
    if not difference <= TOLERANCE * max(1.0, largest):
        raise ValueError(f"onnxruntime's numbers differ from PyTorch's by up to {difference:.3g}; nothing was written.")


def step_name(text: str) -> int | str:
    """ "latest", "best" or a number, from the command line."""
    if text in ("latest", "best"):
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no step; give a number, latest or best")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxrjax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="workdir, its checkpoints folder, or one step's folder")
    parser.add_argument("--check", metavar="FOLDER", help="say what a folder holds, and write nothing")
    parser.add_argument("--output", help="new folder for the exported model")
    parser.add_argument(
        "--form", choices=FORMS, default="transformers", help="whose names it has (default transformers)"
    )
    parser.add_argument("--step", type=step_name, default="latest", help="latest (default), best, or a number")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier export")
    arguments = parser.parse_args(argv)
    if not arguments.check and not (arguments.checkpoint and arguments.output):
        parser.error("give --checkpoint and --output, or --check FOLDER")
    try:
        if arguments.check:
            print("\n".join(exported.describe(arguments.check)))
            return 0
        parity = export(arguments.checkpoint, arguments.output, arguments.step, arguments.overwrite, arguments.form)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if parity is None:
        print("Parity was not measured: torch and transformers are not installed.")
    else:
        print(
            f"Largest difference between our features and those of {parity.through}: {parity.difference:.2e} "
            f"({parity.pictures} computed pictures; largest feature {parity.largest:.2f})."
        )
    config = json.loads((Path(arguments.output) / huggingface.CONFIG).read_text())
    print(f"Written: {arguments.output}. Load it with {model_card.loading(config)}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
