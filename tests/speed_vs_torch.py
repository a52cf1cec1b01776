"""Time of one S-PCL training step (loss and gradient of all parameters) in cxrjax and in eager PyTorch.

    python tests/speed_vs_torch.py [--images 8] [--rounds 15] [--threads 2]

ViT-S/16 at 224 px in one channel, ρ = 1: two parts of 98 tokens and [CLS], float32, same maths on both sides. The
PyTorch side is what its users write: nn.Linear, F.scaled_dot_product_attention, exact GELU, no compilation.
Both take turns in one process, so that other load on the machine meets both; the result is the median of the ratios of
neighbouring turns. Not collected by pytest: a time is no test.
"""

import argparse
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cxrjax.losses import contrastive
from cxrjax.methods.spcl import partition
from cxrjax.models.vit import ViT
from cxrjax.speed import cost, gpu_suite, torch_steps

PATCH, SIDE, KEPT, TEMPERATURE = 16, 14, 98, 0.14


def torch_step(images):
    changes = {"model.variant": "S", "model.dtype": "float32", "loss.temperature": TEMPERATURE}
    config = gpu_suite.settings(gpu_suite.Entry("spcl", "chestxray14", changes, len(images)), tiny=False)
    model, images = torch_steps.models()["spcl"](config), torch.from_numpy(images)

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
    seconds = cost.in_turns(steps, args.rounds)
    print(f"ViT-S/16, {args.images} images, {args.rounds} rounds, torch {torch.__version__}, jax {jax.__version__}")
    for name, times in seconds.items():
        ratio = median(t / base for t, base in zip(times, seconds["torch"], strict=True))
        print(f"{name:<34} median {median(times):.3f} s   fastest {min(times):.3f} s   {ratio:.2f} × torch")


if __name__ == "__main__":
    main()
