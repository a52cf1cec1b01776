"""Time of one S-PCL training step (loss and gradient of all parameters) in cxrjax and in eager PyTorch.

    python tests/speed_vs_torch.py [--images 8] [--rounds 15] [--threads 2]

ViT-S/16 at 224 px in one channel, ρ = 1: two parts of 98 tokens and [CLS], float32, same maths on both sides. The
PyTorch side is what its users write: nn.Linear, F.scaled_dot_product_attention, exact GELU, no compilation.
Both take turns in one process, so that other load on the machine meets both; the result is the median of the ratios of
neighbouring turns. Not collected by pytest: a time is no test.
"""

import argparse
import time
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cxrjax.losses import contrastive
from cxrjax.methods.spcl import partition
from cxrjax.models.vit import VARIANTS, ViT

PATCH, SIDE, KEPT, TEMPERATURE = 16, 14, 98, 0.14
SIZE = VARIANTS["S"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        d = SIZE.width
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, SIZE.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Spcl(nn.Module):
    def __init__(self):
        super().__init__()
        d = SIZE.width
        self.patch_embed, self.norm = nn.Linear(PATCH * PATCH, d), nn.LayerNorm(d, eps=1e-6)
        self.register_buffer("position", torch.randn(SIDE * SIDE, d))
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, d))
        self.blocks = nn.ModuleList(Block() for _ in range(SIZE.depth))

    def forward(self, images):
        b = len(images)
        x = images.reshape(b, SIDE, PATCH, SIDE, PATCH).permute(0, 1, 3, 2, 4).reshape(b, SIDE * SIDE, -1)
        x = self.patch_embed(x) + self.position
        ids = torch.rand(b, SIDE * SIDE).argsort(dim=1)
        parts = [ids[:, :KEPT], ids[:, SIDE * SIDE - KEPT :]]
        x = torch.cat([x.gather(1, part[:, :, None].expand(-1, -1, x.shape[-1])) for part in parts])
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        u, v = F.normalize(self.norm(x)[:, 0], dim=-1).split(b)
        logits, target = u @ v.T / TEMPERATURE, torch.arange(b)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def torch_step(images):
    model, images = Spcl(), torch.from_numpy(images)

    def step():
        model.zero_grad(set_to_none=True)
        model(images).backward()

    return step


def jax_step(images, cls_only):
    encoder, images = ViT(variant="S"), jnp.asarray(images)[..., None]
    params = jax.jit(encoder.init)(jax.random.key(0), images[:1])

    def loss(params, images, key):
        ids = jnp.stack(partition(key, len(images), (SIDE, SIDE), KEPT, KEPT), axis=1)
        cls = encoder.apply(params, images, ids, cls_only=cls_only)["cls"]
        return contrastive.info_nce(cls[:, 0], cls[:, 1], temperature=TEMPERATURE)

    gradient = jax.jit(jax.value_and_grad(loss)).lower(params, images, jax.random.key(0)).compile()
    return lambda: jax.block_until_ready(gradient(params, images, jax.random.key(1)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch; jax takes all cores")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = np.random.default_rng(0).random((args.images, SIDE * PATCH, SIDE * PATCH), np.float32)
    steps = {
        "torch": torch_step(images),
        "cxrjax": jax_step(images, cls_only=False),
        "cxrjax, last block for [CLS] only": jax_step(images, cls_only=True),
    }
    seconds = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first is for caches
                seconds[name].append(time.perf_counter() - start)
    print(f"ViT-S/16, {args.images} images, {args.rounds} rounds, torch {torch.__version__}, jax {jax.__version__}")
    for name, times in seconds.items():
        ratio = median(t / base for t, base in zip(times, seconds["torch"], strict=True))
        print(f"{name:<34} median {median(times):.3f} s   fastest {min(times):.3f} s   {ratio:.2f} × torch")


if __name__ == "__main__":
    main()
