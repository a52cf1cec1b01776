"""An exported folder for transformers as one ONNX file, through torch: model.onnx beside its weights.

Input "pixel_values" float32 b c h w, as the folder's processor gives it; outputs "pooled" b d and "patches" b p q d,
and of a folder with a head "logits" b c. Only b is free. Takes the extra `onnx`.
"""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import sizes
from cxrjax.interop import classifier, huggingface

FILE = "model.onnx"
NEEDED = ("torch", "transformers", "onnx", "onnxscript")
OPSET = 20


def write(folder: Path, pool: str) -> None:
    """Writes model.onnx. pool: which vector of a ViT stands for the picture, a word of config.model.

    Raises ValueError where a package is missing, naming it.
    """
    if absent := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        raise ValueError(f"--form onnx needs {', '.join(absent)}; install them with pip install 'cxrjax[onnx]'.")
    import torch
    import transformers

    config = json.loads((folder / huggingface.CONFIG).read_text())
    kind = "AutoModelForImageClassification" if classifier.is_attached(config) else classifier.encoder_class(config)
    options: dict[str, Any] = {"add_pooling_layer": False} if kind == "ViTModel" else {}
    model = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager", **options).eval()
    first = 1 + config.get("num_register_tokens", 0)
    names = ["pooled", "patches"] + ["logits"] * classifier.is_attached(config)

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = getattr(model, config["model_type"], model)
            self.head = getattr(model, "classifier", None)

        def forward(self, pixel_values):
            found = self.trunk(pixel_values)
            last = found.last_hidden_state
            if config["model_type"] == "resnet":
                pooled, patches = found.pooler_output.flatten(1), last.permute(0, 2, 3, 1)
                heads = found.pooler_output
            else:
                flat = last[:, first:]
                patches = flat.reshape(-1, *sizes.grid(config["image_size"], config["patch_size"]), flat.shape[-1])
                pooled = last[:, 0] if pool == "cls" else flat.mean(1)
                heads = last[:, 0] if config["model_type"] == "vit" else torch.cat([last[:, 0], flat.mean(1)], dim=1)
            return (pooled, patches) if self.head is None else (pooled, patches, self.head(heads))

    pictures = torch.zeros(2, config["num_channels"], *sizes.sides(config["image_size"]))
    torch.onnx.export(
        Encoder().eval(),
        (pictures,),
        folder / FILE,
        input_names=["pixel_values"],
        output_names=names,
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def run(folder: str | Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What onnxruntime makes of pixels float32 b c h w, by the names of the outputs."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(Path(folder) / FILE), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixel_values": pixels}), strict=True))
