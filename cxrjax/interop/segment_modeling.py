"""Masks of pictures, in plain torch and transformers.

model = Segmenter(".").eval()                               # the folder that this file lies in
logits = model(**processor(picture, return_tensors="pt"))   # b h w, of the pixels that the processor gives
inside = logits > 0
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel


class Segmenter(nn.Module):
    """The encoder and the head of head.json: UNETR, SETR-PUP or UPerNet on a ViT, U-Net on a ResNet."""

    def __init__(self, folder: str | Path = "."):
        super().__init__()
        self.config = json.loads((folder := Path(folder)).joinpath("head.json").read_text())
        is_vit = json.loads((folder / "config.json").read_text())["model_type"] == "vit"
        self.encoder = AutoModel.from_pretrained(folder, **({"add_pooling_layer": False} if is_vit else {}))
        layers = self.config["layers"].items()
        self.layers = nn.ModuleDict({name: getattr(nn, kind)(**options) for name, (kind, options) in layers})
        self.layers.load_state_dict(load_file(folder / "head.safetensors"))

    def forward(self, pixel_values: Tensor, **_: Tensor) -> Tensor:
        out = self.encoder(pixel_values, output_hidden_states=True)
        found = getattr(self, self.config["kind"])(pixel_values, out.last_hidden_state, out.hidden_states)
        return found.squeeze(1)

    def unetr(self, pixels: Tensor, last: Tensor, blocks: tuple[Tensor, ...]) -> Tensor:
        x, taps, layers = _grid(last, pixels, self.config), self.config["taps"], self.layers
        for level in range(len(taps), -1, -1):
            skip = pixels[:, :1]
            if level:
                skip = layers[f"skip{level}_up1"](_grid(blocks[taps[level - 1]], pixels, self.config))
                for i in range(2, len(taps) + 2 - level):
                    skip = self._residual(f"skip{level}_block{i}", layers[f"skip{level}_up{i}"](skip))
            else:
                skip = self._residual("skip0", skip)
            x = self._residual(f"merge{level}", torch.cat([layers[f"up{level}"](x), skip], 1))
        return layers["logits"](x)

    def setr_pup(self, pixels: Tensor, last: Tensor, blocks: tuple[Tensor, ...]) -> Tensor:
        x = self.layers["fc"](_grid(last, pixels, self.config))
        for i in range(sum(name.endswith("_norm") for name in self.layers)):
            x = F.interpolate(self._conv(f"conv{i + 1}", x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.layers["logits"](x)

    def upernet(self, pixels: Tensor, last: Tensor, blocks: tuple[Tensor, ...]) -> Tensor:
        chosen = (max(round((len(blocks) - 1) * block / 12), 1) for block in (4, 6, 8, 12))
        maps = [_grid(blocks[block], pixels, self.config) for block in chosen]
        maps[0] = self.layers["up4_again"](F.gelu(self.layers["norm4"](self.layers["up4"](maps[0]))))
        maps[1], maps[3] = self.layers["up2"](maps[1]), F.max_pool2d(maps[3], 2)
        pools = [_like(maps[3], self._conv(f"pool{k}", F.adaptive_avg_pool2d(maps[3], k))) for k in (1, 2, 3, 6)]
        sums = [self._conv(f"lateral{i + 1}", x) for i, x in enumerate(maps[:3])]
        sums.append(self._conv("context", torch.cat([maps[3], *pools], 1)))
        for i in (2, 1, 0):
            sums[i] = sums[i] + _like(sums[i], sums[i + 1])
        fine = [self._conv(f"smooth{i + 1}", x) for i, x in enumerate(sums[:3])] + sums[3:]
        x = self._conv("fuse", torch.cat([_like(sums[0], x) for x in fine], 1))
        return _like(pixels, self.layers["logits"](x))

    def unet(self, pixels: Tensor, last: Tensor, stages: tuple[Tensor, ...]) -> Tensor:
        x, stem = last, self.encoder.embedder.embedder(pixels)  # which hidden_states has behind its max-pool only
        for i, skip in enumerate([*stages[-2:0:-1], stem, None]):
            x = F.interpolate(x, scale_factor=2)
            x = x if skip is None else torch.cat([x, skip], 1)
            x = self._conv(f"up{i + 1}_conv2", self._conv(f"up{i + 1}_conv1", x))
        return self.layers["logits"](x)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.layers[f"{name}_norm"](self.layers[f"{name}_conv"](x)))

    def _residual(self, name: str, x: Tensor) -> Tensor:
        y = F.leaky_relu(F.instance_norm(self.layers[f"{name}_conv1"](x)))
        y = F.instance_norm(self.layers[f"{name}_conv2"](y))
        x = F.instance_norm(self.layers[f"{name}_conv3"](x)) if f"{name}_conv3" in self.layers else x
        return F.leaky_relu(x + y)


def _grid(tokens: Tensor, pixels: Tensor, config: dict) -> Tensor:
    p, q = (side // config["patch_px"] for side in pixels.shape[2:])
    return tokens[:, -p * q :].mT.unflatten(2, (p, q))


def _like(wanted: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(x, wanted.shape[2:], mode="bilinear")
