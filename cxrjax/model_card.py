"""The README.md of an exported encoder: what it is, how to feed it, and what was measured, from the run's own files."""

import html
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrjax import arrived, lineage, sizes
from cxrjax import config as shared
from cxrjax.config import ConfigDict
from cxrjax.interop import classifier, fitting, head_files, joint, torch_timm
from cxrjax.trained import Trained

_CARD = """---
library_name: {library}
pipeline_tag: {task}
tags:
- chest-x-ray
- self-supervised
- cxrjax
---

# {title}

A chest X-ray encoder ({architecture}, pictures of {px} px), {origin} cxrjax.

- Method: {method}
- Features: {pool}
{reports}
## What it was trained on

{lineage}

The same in JSON, which is `lineage.json` of this folder:

```json
{lineage_json}
```

## Use

{usage}
## Preprocessing

1. One grey channel, 8 bits, bones white (a DICOM with MONOCHROME1 must be inverted, and windowed, beforehand).
2. {fit}
3. Divide by 255, subtract {mean}, divide by {std}; the same picture on all three channels.

The encoder saw grey pictures; its {first_layer} has three channels so that a replicated grey picture gives the same
features. Do not give it pictures in colour, or with different channels. cxrjax shrinks by area averaging,
the processor by an antialiased bilinear filter: features of larger pictures differ for that reason alone. These lines
give the pixels of cxrjax, for a transform that then only divides and normalises (`do_resize=False,
do_center_crop=False` of a transformers processor):

```python
import cv2

{pixels}
```

## Agreement with the original

{parity}

## What was measured

{measured}

## Intended use and limits

For research: features for probes, retrieval, and initialisation of further training on chest radiographs. It is no
medical device and must not guide the care of a patient. {seen}: other devices, countries, ages, projections and body
parts can give worse features without warning. Labels, splits and biases of these data (who was imaged, where, why) are
inherited. Check that your test patients were not among them: public chest X-ray sets overlap.
{phantom}

## Licence

Not stated. Whoever publishes these weights states one that the terms of the pre-training data allow.

## {heading}

{repeats}

```json
{settings}
```
"""

_USAGE = """```python
import torch
from PIL import Image
{imports}

folder = "."  # this folder
processor = AutoImageProcessor.from_pretrained(folder)
model = {loading}.eval()
with torch.inference_mode():
    out = model(**processor(Image.open("picture.png"), return_tensors="pt"))
{use}
{answers}"""

_TIMM_USAGE = """```python
import timm
import torch
from PIL import Image

folder = "."  # this folder
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    maps = model.forward_features(transform(Image.open("picture.png").convert("RGB"))[None])
    features = model.forward_head(maps, pre_logits=True)
```

The same without config.json:

```python
model = timm.create_model(
    "{architecture}",
    checkpoint_path="model.safetensors",
    num_classes={num_classes},
{arguments})
```
{answers}"""

_TIMM_ANSWERS = """
`model(…)` gives the {num_classes} logits of the trained head, whose names are `label_names` in config.json.
"""

_VIT_USE = """tokens = out.last_hidden_state
features = {features}
patches = tokens[:, {first}:]  # {grid} patches in raster order
```
{pooling}"""

_NO_POOLING = """
`add_pooling_layer=False` matters: the pooling layer of `ViTModel` was not trained, and would be random."""

_RESNET_USE = """features = out.pooler_output.flatten(1)
patches = out.last_hidden_state  # batch, channels, rows, columns of the last map
```

`eval()` matters, since BatchNorm must use the statistics of the pre-training pictures."""

_GATED_USE = "features, patches = out  # batch, channels; batch, rows, columns, channels\n```"

_ANSWERS = """
The trained head answers {kind} with {count} logits:

```python
from transformers import AutoModelForImageClassification

classifier = AutoModelForImageClassification.from_pretrained(folder).eval()
with torch.inference_mode():
    logits = classifier(**processor(Image.open("picture.png"), return_tensors="pt")).logits
probabilities = {probabilities}
names = [classifier.config.id2label[i] for i in range({count})]
```

The encoder's class says that it leaves the classifier's arrays unread; that is as it should be.
"""

_NO_CLASS = """
The run's head, which reads the mean of the patches, is left out: Hugging Face's ViT classifier reads [CLS].
"""

_ENLARGED = """

In pre-training it saw pictures that were first brought to {px} px and then enlarged, the corner pixels staying the
corners. The processor here brings pictures to the larger size at once."""

_REPORTS = """- It learned from reports as well. Their encoder is in `text/`: `BertModel.from_pretrained("text")` and
  `BertTokenizer.from_pretrained("text")`.
"""

_NO_JOINT = "- The projections of both to a joint space are not part of this folder.\n"

_JOINT = """- The space of both is in `modeling.py`, plain torch, with `joint.safetensors`:
  `from modeling import Joint; joint = Joint(".").eval()`. Its docstring shows the vectors of pictures and texts, their
  logits, and where each word is seen.
"""

_ARRIVED = "not known here: others trained it."
_REPEATS = (
    "`python -m cxrjax.main --config=configs/{module}.py` with these settings, which are the run's config.json, "
    "repeats it:"
)
_READ = "`fit` says how cxrjax fits pictures to the encoder, `model` what computes it, `init_from` where it lay:"

_PHANTOM = "\nThe phantoms are computed pictures: nothing learned from or measured on them is clinical.\n"


def text(
    model: Trained,
    config: dict[str, Any],
    parity: Any,
    entries: list[lineage.Entry],
    of_timm: dict[str, Any] | None = None,
    beside: Sequence[str] = (),
) -> str:
    """The card in Markdown.

    config: the content of config.json for transformers. of_timm: that of a folder for timm, if it is one.
    entries: of `lineage.whole`. parity: `parity.Parity`, or None where it was not measured. beside: of
    `exported.beside`.
    """
    settings = model.config
    ours = settings.method != arrived.NAME
    doc = importlib.import_module(f"cxrjax.methods.{settings.method}").__doc__ if ours else _ARRIVED
    describe = _resnet if config["model_type"] == "resnet" else _vit
    described = describe(settings, config)
    has_head = of_timm["num_classes"] > 0 if of_timm else classifier.is_attached(config)
    measured, judged = _measured(model.workdir, model.step)
    return _CARD.format(
        **described,
        library="timm" if of_timm else "transformers",
        usage=_timm_usage(of_timm) if of_timm else _usage(model, config, described["use"]),
        task="image-classification" if has_head else "image-feature-extraction",
        px=sizes.said(config["image_size"]),
        fit=fitting.in_words(model.method.sees, config["image_size"]),
        pixels=fitting.lines(model.method.sees, config["image_size"]),
        method=(doc or settings.method).strip().splitlines()[0],
        origin="trained with" if ours else "read and written again by",
        heading="The run" if ours else "How it was read",
        repeats=_REPEATS.format(module=settings.method) if ours else _READ,
        lineage=_told(entries),
        lineage_json=json.dumps(entries, indent=2, ensure_ascii=False),
        seen=_seen(entries),
        mean=settings.standardise.mean,
        std=settings.standardise.std,
        parity=_parity(parity),
        measured=measured,
        reports=_reports(settings, of_timm is None) + "".join(f"- {sentence}\n" for sentence in beside),
        phantom=_PHANTOM if any("phantom" in name for name in (*lineage.sets(entries), *judged)) else "",
        settings=shared.to_json(settings),
    )


def _told(entries: list[lineage.Entry]) -> str:
    said = [_plain(sentence) for sentence in lineage.sentences(entries)]
    if len(said) == 1:
        return said[0]
    return "From the first start to this run:\n\n" + "\n".join(f"{i}. {one}" for i, one in enumerate(said, 1))


def _seen(entries: list[lineage.Entry]) -> str:
    if unknown := lineage.unknown(entries):
        return _plain(f"It has seen the sets named above and what is not known of {', '.join(unknown)}")
    return "It has seen the pictures of the sets named above and no others"


def loading(config: dict[str, Any]) -> str:
    """The expression that loads an exported folder, from the content of its config.json."""
    if torch_timm.is_named(config):
        return 'timm.create_model("local-dir:" + folder, pretrained=True)'
    if config["model_type"] == head_files.GATED:
        return "Gated(folder)"
    options = ", add_pooling_layer=False" if config["model_type"] == "vit" else ""
    return f"{classifier.encoder_class(config)}.from_pretrained(folder{options})"


def _reports(settings: ConfigDict, with_joint: bool) -> str:
    if "text" not in settings:
        return ""
    return _REPORTS + (_JOINT if with_joint and settings.method in joint.PLACES else _NO_JOINT)


def _usage(model: Trained, config: dict[str, Any], use: str) -> str:
    imports = f"from transformers import AutoImageProcessor, {classifier.encoder_class(config)}"
    if head_files.has_gates(model.config):
        config = config | {"model_type": head_files.GATED}
        imports, use = "from modeling import Gated\nfrom transformers import AutoImageProcessor", _GATED_USE
    return _USAGE.format(imports=imports, loading=loading(config), use=use, answers=_answers(model, config))


def _timm_usage(of_timm: dict[str, Any]) -> str:
    arguments = "".join(f"    {name}={value!r},\n" for name, value in of_timm["model_args"].items())
    count = of_timm["num_classes"]
    answers = _TIMM_ANSWERS.format(num_classes=count) if count else ""
    return _TIMM_USAGE.format(
        architecture=of_timm["architecture"], num_classes=count, arguments=arguments, answers=answers
    )


def _answers(model: Trained, config: dict[str, Any]) -> str:
    """How to ask the head of a folder, and where it was left behind why."""
    answers = model.method.answers
    if answers is None or answers.kind not in classifier.PROBLEMS:
        return ""
    if not classifier.is_attached(config):
        return _NO_CLASS
    several = answers.kind == "multilabel"
    return _ANSWERS.format(
        kind="one question each" if several else "one question",
        count=len(answers.names),
        probabilities="logits.sigmoid()" if several else "logits.softmax(dim=1)",
    )


def _vit(settings: ConfigDict, config: dict[str, Any]) -> dict[str, str]:
    layers, heads, patch = (config[key] for key in ("num_hidden_layers", "num_attention_heads", "patch_size"))
    first = 1 + config.get("num_register_tokens", 0)
    pooled, features = {
        "cls": ("the final [CLS] token", "tokens[:, 0]"),
        "mean": ("the mean of the final patch tokens", f"tokens[:, {first}:].mean(dim=1)"),
    }[settings.model.pool]
    pooling = _NO_POOLING if config["model_type"] == "vit" else ""
    grid = "{} x {}".format(*sizes.grid(config["image_size"], patch))
    return {
        "title": _title(settings, f"ViT-{settings.model.variant}/{patch}"),
        "architecture": f"ViT, {layers} layers, width {config['hidden_size']}, {heads} heads, patches of {patch} px",
        "pool": pooled,
        "use": _VIT_USE.format(features=features, first=first, grid=grid, pooling=pooling),
        "first_layer": "patch embedding",
    }


def _resnet(settings: ConfigDict, config: dict[str, Any]) -> dict[str, str]:
    blocks = "-".join(map(str, config["depths"]))
    enlarged = sizes.plain(config["image_size"]) != sizes.plain(settings.model.image_px)
    return {
        "title": _title(settings, settings.model.variant),
        "architecture": f"ResNet, {config['layer_type']} blocks {blocks}, width {config['hidden_sizes'][-1]}",
        "pool": "the mean of the last map",
        "use": _RESNET_USE + (_ENLARGED.format(px=sizes.said(settings.model.image_px)) if enlarged else ""),
        "first_layer": "first convolution",
    }


def _title(settings: ConfigDict, encoder: str) -> str:
    return _plain(f"{settings.method}, {encoder}, {', '.join(shared.names(settings.data.sets))}")


def _plain(text: Any) -> str:
    """A name as it stands in a cell of a table, and no HTML."""
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")


def _parity(parity: Any) -> str:
    if parity is None:
        return "Not measured: torch and transformers were not installed when this folder was written."
    return (
        f"On {parity.pictures} computed pictures the features of this folder, through {parity.through}, and of the JAX "
        f"original\ndiffer by at most {parity.difference:.1e} (largest feature: {parity.largest:.2f})."
    )


def _measured(workdir: Path, step: int) -> tuple[str, set[str]]:
    """A table of what the run's evaluations found at this step, and the sets that they judged on.

    Each row has the evaluation's own folder.
    Quick looks at some of a split's pictures are not in it.
    """
    rows, sets = [], set()
    for file in sorted(workdir.glob(f"evals/*/{step}/results.json")):
        results = json.loads(file.read_text())
        entry = results.get("entry", {})
        if entry.get("limit"):
            continue
        judged = entry.get("set", "?")
        sets.add(judged)
        for name, value in results["metrics"].items():
            known = None not in (value["low"], value["high"])
            interval = f"{value['low']:.4f} to {value['high']:.4f}" if known else "not defined"
            rows.append(
                f"| {_plain(file.parts[-3])} | {_plain(judged)} | {_plain(name)} | {value['value']:.4f} | {interval} "
                f"| {value['n']} |"
            )
    if not rows:
        return f"Nothing: the run has no evaluation of step {step}.", sets
    header = ["| evaluation | set | metric | value | 95 % interval | n |", "|---|---|---|---|---|---|"]
    closing = "Intervals are over resampled patients; n counts pictures, or studies in retrieval."
    return "\n".join([*header, *rows, "", closing]), sets
