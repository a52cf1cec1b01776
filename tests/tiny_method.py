"""A method of 64 numbers, whose runs take no time to compile."""

import jax
import jax.numpy as jnp

from cxrjax import optim
from cxrjax.input import crops
from cxrjax.methods import Aux, Method

LINE = {"batch_size": 8, "mesh__data": 1, "log_every_steps": 1, "evals": {}, "optim__warmup_steps": 2}
"""Changes to a config that go with it."""


def line():
    """A method of 64 numbers: w·(x + noise) of the mean picture x, and a state that says what it was given."""

    def loss(params, state, batch, key, step):
        mean = batch["image"].astype(jnp.float32).mean((0, 1)).ravel() / 255
        value = (step + 1) * jnp.sum(params["w"] * (mean + jax.random.normal(key, (64,))))
        return value, Aux({**state, "mean": mean}, {"product": value}, {"largest": mean.max()})

    def init(key, batch):
        zeros = jnp.zeros(64)
        return {"w": jax.random.normal(key, (64,))}, {
            "mean": zeros,
            "average": zeros,
            "after": jnp.zeros((), jnp.int32),
        }

    def make_views(example, generator):
        return {"image": crops.views(crops.decode(example["image"]), generator, crops.Crop(8, scale=(0.3, 1.0)))}

    def after(params, state, step):
        return {**state, "average": optim.ema(state["average"], params["w"], 0.5), "after": step}

    return Method(make_views, init, loss, after, encode=lambda params, state, images: {}, image_px=8)
