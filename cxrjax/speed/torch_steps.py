"""Training steps of S-PCL, MAE and a supervised ViT in PyTorch, as its users write them: what ours are timed beside.

nn.Linear, F.scaled_dot_product_attention, exact GELU, autocast in half precision, AdamW (fused on a GPU). Sizes, token
counts and losses are those of the configs; values are not compared here.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

from cxrjax import sizes
from cxrjax.methods.mae import kept_patches
from cxrjax.methods.spcl import partition_sizes
from cxrjax.models.vit import VARIANTS


def missing() -> str | None:
    """Why PyTorch cannot be timed here; None where it can: it is installed, and runs where jax does."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import jax
    import torch

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return None


def step(method: str, config: Any, compiled: bool) -> Callable[[], None]:
    """One training step on pictures of noise, which waits until it is done. method: spcl, mae or supervised.

    compiled: by `torch.compile`.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = models()[method](config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=device == "cuda")
    loss = torch.compile(model) if compiled else model
    px, half = config.model.image_px, config.model.dtype == "bfloat16"
    images = torch.rand(config.batch_size, *sizes.sides(px), device=device)

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            value = loss(images)
        value.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return one


def models() -> dict[str, Any]:
    """Modules from a config that map pictures, b h w, to a loss."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int, heads: int):
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, n, d = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Encoder(nn.Module):
        def __init__(self, config: Any):
            super().__init__()
            size, self.patch = VARIANTS[config.model.variant], config.model.patch_px
            self.grid, self.width = sizes.grid(config.model.image_px, self.patch), size.width
            self.n = self.grid[0] * self.grid[1]
            self.embed, self.norm = nn.Linear(self.patch**2, size.width), nn.LayerNorm(size.width, eps=1e-6)
            self.position: Any
            self.register_buffer("position", torch.randn(self.n, size.width))
            self.cls = nn.Parameter(0.02 * torch.randn(1, 1, size.width))
            self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))

        def patches(self, images: Any) -> Any:
            (rows, columns), patch = self.grid, self.patch
            cut = images.reshape(len(images), rows, patch, columns, patch)
            return cut.permute(0, 1, 3, 2, 4).reshape(len(images), self.n, -1)

        def forward(self, images: Any, parts: list[Any]) -> Any:
            """Encodes some patches of every picture, b k of each part, to tokens of the parts one after the other."""
            x = self.embed(self.patches(images)) + self.position
            x = torch.cat([x.gather(1, part[:, :, None].expand(-1, -1, self.width)) for part in parts])
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

        def shuffled(self, images: Any) -> Any:
            return torch.rand(len(images), self.n, device=images.device).argsort(dim=1)

    class Spcl(Encoder):
        def __init__(self, config: Any):
            super().__init__(config)
            keep = config.partition
            self.sizes = partition_sizes(self.n, keep.keep_ratio, keep.split_ratio)
            self.temperature = config.loss.temperature

        def forward(self, images: Any) -> Any:
            ids, (first, second) = self.shuffled(images), self.sizes
            tokens = super().forward(images, [ids[:, :first], ids[:, first : first + second]])
            u, v = F.normalize(tokens[:, 0].float(), dim=-1).split(len(images))
            logits, target = u @ v.T / self.temperature, torch.arange(len(images), device=images.device)
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    class Mae(Encoder):
        def __init__(self, config: Any):
            super().__init__(config)
            decoder, n = config.decoder, self.n
            self.kept = kept_patches(n, config.masking.ratio)
            self.narrow = nn.Linear(self.width, decoder.width)
            self.mask = nn.Parameter(torch.zeros(1, 1, decoder.width))
            self.places: Any
            self.register_buffer("places", torch.randn(n + 1, decoder.width))
            self.decoder = nn.ModuleList(Block(decoder.width, decoder.heads) for _ in range(decoder.depth))
            self.last = nn.Sequential(nn.LayerNorm(decoder.width, eps=1e-6), nn.Linear(decoder.width, self.patch**2))

        def forward(self, images: Any) -> Any:
            ids = self.shuffled(images)
            x = self.narrow(super().forward(images, [ids[:, : self.kept]]))
            b, n, d = len(x), self.n, x.shape[-1]
            hidden = self.mask.to(x.dtype).expand(b, n - self.kept, -1)
            back = ids.argsort(dim=1)[:, :, None].expand(-1, -1, d)
            x = torch.cat([x[:, :1], torch.cat([x[:, 1:], hidden], dim=1).gather(1, back)], dim=1) + self.places
            for block in self.decoder:
                x = block(x)
            target = self.patches(images)
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
            error = ((self.last(x[:, 1:]).float() - target) ** 2).mean(-1)
            weight = torch.ones_like(error).scatter(1, ids[:, : self.kept], 0.0)
            return (error * weight).sum() / weight.sum()

    class Supervised(Encoder):
        def __init__(self, config: Any):
            super().__init__(config)
            self.head = nn.Linear(self.width, len(config.labels.split(",")))

        def forward(self, images: Any) -> Any:
            everything = torch.arange(self.n, device=images.device).expand(len(images), -1)
            logits = self.head(super().forward(images, [everything])[:, 0]).float()
            return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    return {"spcl": Spcl, "mae": Mae, "supervised": Supervised}
