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
    """A ViT, a simple pyramid on its patches, and a box with scores at each place."""

    def __init__(self, folder: str | Path = "."):
        super().__init__()
        self.config = json.loads((folder := Path(folder)).joinpath("head.json").read_text())
        is_vit = json.loads((folder / "config.json").read_text())["model_type"] == "vit"
        self.encoder = AutoModel.from_pretrained(folder, **({"add_pooling_layer": False} if is_vit else {}))
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
        p, q = (side // self.config["patch_px"] for side in pixels.shape[2:])
        patches, found = out["last_hidden_state"][:, -p * q :].mT.unflatten(2, (p, q)), []
        for level, scale in enumerate(self.config["scales"]):
            x, up = patches, f"pyramid_up{level}"
            if scale == 4:
                x = F.gelu(self._norm(f"{up}_norm", self.layers[f"{up}_0"](x)))
            x = self.layers[f"{up}_1"](x) if scale >= 2 else F.max_pool2d(x, 2) if scale == 0.5 else x
            for name in (f"pyramid_level{level}_1", f"pyramid_level{level}_3"):
                x = self._norm(f"{name}_norm", self.layers[name](x))
            quality, y = self.layers["places_logits"](self._tower("quality", x)), self._tower("box", x)
            y = self.layers["places_boxes"](y)
            middle = _cells(y) + (0.5 + y[:, :2]) / _size(y)
            boxes = _corners(middle, self.config["base_cells"] * y[:, 2:].clamp(max=LARGEST).exp() / _size(y), 1)
            found.append((boxes.flatten(2).mT, quality.sigmoid().flatten(2).mT))
        return found

    def _tower(self, name: str, x: Tensor) -> Tensor:
        for i in range(self.config["tower"]):
            x = F.relu(self.layers[f"places_{name}{i}_norm"](self.layers[f"places_{name}{i}"](x)))
        return x

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self.layers[name](x.movedim(1, -1)).movedim(-1, 1)

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
