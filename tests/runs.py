"""Writes the folder of a run that was never trained: a config, and a checkpoint of noise."""

import importlib.util
from pathlib import Path

import jax
import numpy as np

from cxrjax import checkpoint, methods, sizes
from cxrjax import config as shared

CONFIGS = Path(__file__).parents[1] / "configs"


def config(name="spcl", words="smoke", **changes):
    """The config of configs/<name>.py:<words>; changes are by dotted key with __ for the dot."""
    found = _module(name).get_config(words)
    found.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    if "text" in found and found.text.vocab_size is None:  # the command takes it from the vocabulary
        found.text.vocab_size = 1024
    if words != "" and "teachers" in found and not found.teachers.networks:  # and these from the folders of teachers
        found.teachers.networks = _module(name).get_config("smoke").teachers.networks
    if words != "" and "set_heads" in found:  # and these from the sets that are trained on
        with found.unlocked():
            for each in set(shared.names(found.data.sets)) - set(found.set_heads):
                found.set_heads[each] = {"labels": "a,b", "task": "multilabel"}
    return found


def words(name):
    """The words that configs/<name>.py knows after the colon."""
    return getattr(_module(name), "WORDS", ())


def optim(**changes):
    """The optimizer's settings of every config, with changes."""
    return {**shared.pretrain().optim, **changes}


def write(workdir, settings, step=6, seed=0):
    """Writes config.json and one checkpoint of noisy parameters and state into `workdir`; returns the parameters."""
    method = methods.make(settings)
    batch = {"image": np.zeros((1, 1, *sizes.sides(method.image_px), 1), np.uint8), "patient": np.zeros(1, np.int32)}
    params, state = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
    rng = np.random.default_rng(seed)

    def noise(path, leaf):
        value = np.float32(path[-1].key in ("scale", "var")) + 0.1 * rng.standard_normal(leaf.shape, np.float32)
        return jax.numpy.asarray(value, leaf.dtype)

    params, state = (jax.tree.map_with_path(noise, tree) for tree in (params, state))
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(shared.to_json(settings))
    with checkpoint.open(workdir / "checkpoints") as saved:
        tree = {"step": jax.numpy.asarray(step), "params": params, "state": state, "opt_state": {}}
        saved.save(step, tree, {"step": step})
    return params


def _module(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
