"""MLVICX with the context gates that it was trained with, in plain torch and transformers.

model = Gated(".").eval()                                             # the folder that this file lies in
features, patches = model(**processor(picture, return_tensors="pt"))  # b d, b p q d
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel


class Gated(nn.Module):
    """A ResNet whose stem and stages each go through a channel and a spatial gate. Its config has a type of its own, so
    that nobody loads the trunk alone by mistake."""

    def __init__(self, folder: str | Path = "."):
        super().__init__()
        self.config = json.loads((folder := Path(folder)).joinpath("head.json").read_text())
        options = json.loads((folder / "config.json").read_text()) | {"model_type": "resnet"}
        self.trunk = ResNetModel(ResNetConfig.from_dict(options))
        self.trunk.load_state_dict(load_file(folder / "model.safetensors"))
        layers = self.config["layers"].items()
        self.layers = nn.ModuleDict({name: getattr(nn, kind)(**options) for name, (kind, options) in layers})
        self.layers.load_state_dict(load_file(folder / "head.safetensors"))

    def forward(self, pixel_values: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
        x = self.gate(1, self.trunk.embedder.embedder(pixel_values))
        x = self.trunk.embedder.pooler(x)
        for level, stage in enumerate(self.trunk.encoder.stages, 2):
            x = self.gate(level, stage(x))
        return x.mean((2, 3)), x.permute(0, 2, 3, 1)

    def gate(self, level: int, x: Tensor) -> Tensor:
        first, second, spatial = (self.layers[f"level{level}_{name}"] for name in ("channel1", "channel2", "spatial"))
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = torch.sigmoid(second(first(mean).relu()) + second(first(largest).relu())) * x
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return torch.sigmoid(spatial(pooled)) * x
