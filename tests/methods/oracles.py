"""What the tests of the two-view methods share: noisy parameters, their heads in plain PyTorch, one compiled step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from cxrjax import methods
from cxrjax.input import device
from cxrjax.input.augment import Augment
from cxrjax.methods.base import encoder_params
from cxrjax.models import backbone
from tests import runs
from tests.methods.conftest import smooth_pictures


def config(name, words="smoke", **changes):
    """A tiny config whose pictures reach the encoder as `views` gave them, standardised only."""
    found = runs.config(name, words, **changes)
    found.augment = Augment()._asdict()
    return found


def pictures(count=16, views=2, px=32):
    """b v h w 1 uint8; the views of a picture are not alike."""
    return np.concatenate([smooth_pictures(count, px, seed) for seed in range(views)], axis=1)


def noise(shapes, seed=0):
    """Positive numbers in the place of every leaf: no zero hides a term, no two leaves or networks are equal."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return np.float32(around + 0.1 * rng.standard_normal(leaf.shape)) if around else _small(rng, leaf.shape)

    return jax.tree.map_with_path(one, shapes)


def _small(rng, shape):
    return rng.normal(scale=1 / np.sqrt(max(shape[-2] if len(shape) > 1 else 100, 1)), size=shape).astype(np.float32)


class Case(NamedTuple):
    """One step of a method on noisy parameters, and the vectors that its encoders make of both views."""

    method: methods.Method
    params: dict
    state: dict
    step: Callable  # batch -> (loss, aux), (gradient by params, gradient by state), features
    batch: dict


def case(config, views=2):
    """features: "online", and "target" where there is one: b d of each view, through the encoder in training."""
    method, encoder = methods.make(config), backbone.make(config.model)
    shapes = jax.eval_shape(method.init, jax.random.key(0), methods.blank_batch(method))
    params, state = (noise(tree, seed) for seed, tree in enumerate(shapes))
    networks = {"online": params} | ({"target": state["target"]} if "target" in state else {})

    @jax.jit
    def step(batch):
        def loss(params, state):
            return method.loss(params, state, batch, jax.random.key(0), 2)

        images = device.standardise(batch["image"], **config.standardise)
        features = {
            name: [
                encoder.apply(encoder_params(network, state), state["batch_stats"]["encoder"], images[:, v], train=True)
                for v in range(views)
            ]
            for name, network in networks.items()
        }
        pooled = {name: [found["pooled"] for found, _ in both] for name, both in features.items()}
        return *jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, state), pooled

    return Case(method, params, state, step, {"image": pictures(views=views)})


class TorchMLP(torch.nn.Module):
    """Linear → BatchNorm1d → ReLU → … → Linear (→ BatchNorm1d) with these parameters and statistics, in training."""

    def __init__(self, params, stats):
        super().__init__()
        self.depth = sum(name.startswith("fc") for name in params)
        for i in range(1, self.depth + 1):
            kernel, bias = params[f"fc{i}"]["kernel"], params[f"fc{i}"].get("bias")
            linear = torch.nn.Linear(*kernel.shape, bias=bias is not None)
            linear.weight.data = torch.tensor(np.asarray(kernel).T)
            if bias is not None:
                linear.bias.data = torch.tensor(np.asarray(bias))
            setattr(self, f"fc{i}", linear)
            if f"norm{i}" in stats:
                affine = params.get(f"norm{i}")
                norm = torch.nn.BatchNorm1d(kernel.shape[1], affine=affine is not None)
                for name, tensor in (("scale", norm.weight), ("bias", norm.bias)):
                    if name in (affine or {}):  # SimCLR's last one has a scale alone; its bias stays 0
                        tensor.data = torch.tensor(np.asarray(affine[name]))
                norm.running_mean = torch.tensor(np.asarray(stats[f"norm{i}"]["mean"]))
                norm.running_var = torch.tensor(np.asarray(stats[f"norm{i}"]["var"]))
                setattr(self, f"norm{i}", norm)

    def forward(self, x):
        for i in range(1, self.depth + 1):
            x = getattr(self, f"fc{i}")(x)
            if hasattr(self, f"norm{i}"):
                x = getattr(self, f"norm{i}")(x)
            x = torch.relu(x) if i < self.depth else x
        return x

    def check(self, gradient, stats):
        """Compares the gradients after backward() and the running statistics with ours."""
        for i in range(1, self.depth + 1):
            linear, norm = getattr(self, f"fc{i}"), getattr(self, f"norm{i}", None)
            close(gradient[f"fc{i}"]["kernel"], linear.weight.grad.T)
            if norm is not None:
                close(stats[f"norm{i}"]["mean"], norm.running_mean)
                close(stats[f"norm{i}"]["var"], norm.running_var)
                theirs = {"scale": norm.weight, "bias": norm.bias}
                for name, ours in gradient.get(f"norm{i}", {}).items():
                    close(ours, theirs[name].grad)


def leaf(array):
    """A torch tensor that collects its gradient."""
    return torch.tensor(np.asarray(array), requires_grad=True)


def close(ours, theirs):
    """To 3e-4 of the largest number: a BatchNorm of vectors that are nearly alike magnifies what float32 rounds."""
    theirs = theirs.detach().numpy() if torch.is_tensor(theirs) else np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, atol=3e-4 * max(3e-2, np.abs(theirs).max()), rtol=1e-4)


def check_encoder(params, gradient, pooled):
    """A ViT's [CLS] is a LayerNorm's scale times some rows, plus a bias: what reaches the scale, from all views."""
    norm = params["encoder"]["norm"]
    rows = [(x.detach() - torch.tensor(norm["bias"])) / torch.tensor(norm["scale"]) for x in pooled]
    close(
        gradient["encoder"]["norm"]["scale"],
        sum((x.grad * row).sum(dim=0) for x, row in zip(pooled, rows, strict=True)),
    )


def learn(method, batch, steps, lr=1e-3):
    """(params, state) and the reports of Adam on one batch, each step with its own key, as the trainer does it."""
    optimizer = optax.adam(lr)
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    opt_state, reports = optimizer.init(params), []

    @jax.jit
    def step(params, state, opt_state, i):
        def loss(params):
            return method.loss(params, state, batch, jax.random.fold_in(jax.random.key(1), i), i)

        (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, method.after(params, aux.state, i), opt_state, aux.monitors | {"loss": value}

    for i in range(steps):
        params, state, opt_state, report = step(params, state, opt_state, jnp.asarray(i))
        reports.append(jax.device_get(report))
    return params, state, reports
