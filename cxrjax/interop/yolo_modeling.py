"""Boxes in pictures, in plain torch and transformers.

model = Detector(".").eval()                                 # the folder that this file lies in
(found,) = model(**processor(picture, return_tensors="pt"))  # one a picture, by falling score
found["boxes"], found["scores"], found["labels"]             # k 4, y0 x0 y1 x1 from 0 to 1; k; k, of model.names
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

LARGEST = math.log(1000 / 16)


class Detector(nn.Module):
    """A ResNet, and the three branches of YOLOv3 on its last three maps."""

    def __init__(self, folder: str | Path = "."):
        super().__init__()
        self.config = json.loads((folder := Path(folder)).joinpath("head.json").read_text())
        self.encoder = AutoModel.from_pretrained(folder)
        layers = self.config["layers"].items()
        self.layers = nn.ModuleDict({name: getattr(nn, kind)(**options) for name, (kind, options) in layers})
        self.layers.load_state_dict(load_file(folder / "head.safetensors"))
        self.names = self.config["names"]

    def forward(self, pixel_values: Tensor, **_: Tensor) -> list[dict[str, Tensor]]:
        return [self._suppressed(*one) for one in zip(*self.candidates(pixel_values), strict=True)]

    def candidates(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Boxes b n 4 and scores b n c of all places, before any is suppressed."""
        out = self.encoder(pixel_values, output_hidden_states=True)
        return tuple(torch.cat(levels, 1) for levels in zip(*self.places(pixel_values, out), strict=True))

    def places(self, pixels: Tensor, out: dict) -> list[tuple[Tensor, Tensor]]:
        """Boxes b n 4 and scores b n c of every level."""
        x, found = None, []
        for level, tap in enumerate(out["hidden_states"][:-4:-1]):
            x = tap if x is None else torch.cat([F.interpolate(self._conv(f"up{level}", x), scale_factor=2), tap], 1)
            for i in range(5):
                x = self._conv(f"branch{level}_{i}", x)
            y = self.layers[f"out{level}"](self._conv(f"branch{level}_5", x)).unflatten(1, (3, -1))  # b a 5+c p q
            prior = y.new_tensor(self.config["priors"][level])[:, :, None, None]
            boxes = _corners(
                _cells(y) + y[:, :, [1, 0]].sigmoid() / _size(y), y[:, :, [3, 2]].clamp(max=LARGEST).exp() * prior, 2
            )
            kinds = y[:, :, 5:].sigmoid()
            if self.config["score"] == "object":
                kinds = F.one_hot(kinds.argmax(2), kinds.shape[2]).movedim(-1, 2).to(kinds)
            scores = y[:, :, 4:5].sigmoid() * kinds
            found.append(tuple(array.permute(0, 3, 4, 1, 2).flatten(1, 3) for array in (boxes, scores)))
        return found

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.leaky_relu(self.layers[f"{name}_norm"](self.layers[name](x)), 0.1)

    def _suppressed(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        answer, kept = self.config["answer"], []
        best, pair = scores.flatten().topk(min(1000, scores.numel()))
        boxes, labels = boxes.clamp(0, 1)[pair // scores.shape[1]], pair % scores.shape[1]
        long, alive = boxes + boxes.new_tensor([0, 0, *answer["longer"]]), best >= answer["confidence"]
        while alive.any() and len(kept) < answer["most"]:
            kept.append(int(alive.int().argmax()))
            ends = long[kept[-1]]
            both = (torch.minimum(ends, long)[:, 2:] - torch.maximum(ends, long)[:, :2]).clamp(min=0).prod(1)
            whole = (long[:, 2:] - long[:, :2]).clamp(min=0).prod(1)
            overlap = both / (whole + whole[kept[-1]] - both).clamp(min=1e-12)
            alive &= ~((overlap >= answer["overlap"]) & (labels == labels[kept[-1]]))
            alive[kept[-1]] = False
        return {"boxes": boxes[kept], "scores": best[kept], "labels": labels[kept]}


def _size(y: Tensor) -> Tensor:
    return y.new_tensor(y.shape[-2:])[:, None, None]


def _cells(y: Tensor) -> Tensor:
    """Where each place begins, 2 p q, from 0 to 1."""
    return torch.stack(torch.meshgrid(*(torch.arange(side).to(y) for side in y.shape[-2:]), indexing="ij")) / _size(y)


def _corners(middle: Tensor, sides: Tensor, axis: int) -> Tensor:
    return torch.cat([middle - sides / 2, middle + sides / 2], axis)
