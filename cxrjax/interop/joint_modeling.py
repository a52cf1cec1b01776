"""Pictures and reports in one space, in plain torch and transformers.

joint = Joint(".").eval()                                             # the folder that this file lies in
u, patches = joint.image(**processor(picture, return_tensors="pt"))   # b d, b p q d
w, words, mask = joint.text(**joint.tokenize(["No pleural effusion."]))   # b d, b w d, b w
joint.scale * u @ w.T + joint.bias                                    # logits; u @ w.T are cosines
torch.einsum("bwd,bpqd->bwpq", words, patches)                        # where each word is seen
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModel, BatchEncoding, BertModel, BertTokenizer, ViTModel


class Joint(nn.Module):
    """All vectors are of unit length. A word is the sum of its pieces."""

    kinds: Tensor  # of the vocabulary: 0 begins a word, 1 continues one, 2 is none

    def __init__(self, folder: str | Path = "."):
        super().__init__()
        folder = Path(folder)
        self.config = json.loads((folder / "joint.json").read_text())
        if json.loads((folder / "config.json").read_text())["model_type"] == "vit":
            self.picture = ViTModel.from_pretrained(folder, add_pooling_layer=False)
        else:
            self.picture = AutoModel.from_pretrained(folder)
        self.report = BertModel.from_pretrained(folder / "text", add_pooling_layer=False)
        self.tokenizer = BertTokenizer.from_pretrained(folder / "text")
        self.scale, self.bias = self.config["scale"], self.config["bias"]
        arrays = load_file(folder / "joint.safetensors")
        self.heads = nn.ModuleDict({name: _head(name, arrays) for name in ("image", "patches", "text", "words")})
        self.heads.load_state_dict(arrays)
        vocabulary = (folder / "text" / "vocab.txt").read_text("utf-8").removesuffix("\n").split("\n")
        kinds = torch.tensor([2 * (p in ("[CLS]", "[SEP]", "[PAD]")) + p.startswith("##") for p in vocabulary])
        self.register_buffer("kinds", kinds, persistent=False)

    def image(self, pixel_values: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures b c h w, as the folder's processor gives them -> b d, and b p q d of their patches."""
        config = self.picture.config
        if config.model_type == "resnet":
            out = self.picture(pixel_values, output_hidden_states=True)
            pooled, patches = out.pooler_output.flatten(1), out.hidden_states[self.config["map"]].permute(0, 2, 3, 1)
        else:
            tokens, first = self.picture(pixel_values).last_hidden_state, 1 + getattr(config, "num_register_tokens", 0)
            grid = [side // self.config["patch_px"] for side in pixel_values.shape[2:]]
            patches = tokens[:, first:].unflatten(1, grid)
            pooled = tokens[:, 0] if self.config["image_pool"] == "cls" else patches.mean((1, 2))
        return normalize(self.heads["image"](pooled), dim=-1), normalize(self.heads["patches"](patches), dim=-1)

    def text(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens b l and which are no padding -> b d, b w d of the words, and b w, which of them there are."""
        tokens = self.report(input_ids, attention_mask=attention_mask).last_hidden_state
        seen, pool = attention_mask.bool()[..., None], self.config["text_pool"]
        if pool == "cls":
            pooled = tokens[:, 0]
        elif pool == "max":
            pooled = tokens.masked_fill(~seen, -torch.inf).amax(1)
        else:
            pooled = (tokens * seen).sum(1) / seen.sum(1)
        kinds = self.kinds[input_ids].masked_fill(~seen[..., 0], 2)
        index = ((kinds == 0).cumsum(1) - 1).masked_fill(kinds == 2, -1)
        belongs = index[:, None] == torch.arange(int(index.max()) + 1, device=index.device)[:, None]  # b w l
        words = self.heads["words"](belongs.to(tokens.dtype) @ tokens)
        mask = belongs.any(-1)
        return normalize(self.heads["text"](pooled), dim=-1), normalize(words, dim=-1) * mask[..., None], mask

    def tokenize(self, texts: list[str]) -> BatchEncoding:
        """What `text` takes, cut to the length that the model was trained with."""
        longest = self.config["length"]
        return self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")


def _head(name: str, arrays: dict[str, Tensor]) -> nn.Sequential:
    weights = [arrays[key] for key in sorted(arrays) if key.startswith(f"{name}.") and key.endswith(".weight")]
    layers = [layer for weight in weights for layer in (nn.Linear(weight.shape[1], weight.shape[0]), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
