"""Studies of which one half of the report can be seen in the frontal picture and the other in the lateral one only.

A frontal picture has a bright square in one of four columns, a lateral one a bright bar at one of four heights; the
report names both. Backgrounds are smooth noise, the lateral ones darker above, so that a height can be told from its
surroundings, as in a body. Whoever reads the heights must have looked at the lateral picture.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxrjax.imaging import pixels
from cxrjax.text import tokenizer
from tests.methods.conftest import smooth_pictures

COLUMNS = ("outer", "right", "middle", "left")
HEIGHTS = ("apex", "upper", "lower", "base")
FRONTAL = ("square in the {} column .", "{} square .")
LATERAL = ("bar at the {} .", "{} bar .")
NO_LATERAL = "no lateral view ."


def studies(count, px=32, seed=0, lacking=0.0):
    """Studies as input/studies.py has them, with `column` and `height`, 0 to 3, −1 where there is no lateral picture.

    lacking: share of the studies without one, whose report does not speak of a bar.
    """
    rng = np.random.default_rng(seed)
    backgrounds = smooth_pictures(2 * count, px, seed + 1)[:, 0, :, :, 0] // 4
    cell, size = px // 4, px // 5
    shade = np.linspace(0, 80, px).astype(np.uint8)[:, None]
    columns, heights = (rng.permutation(np.resize(np.arange(4), count)) for _ in range(2))
    for i, (column, height) in enumerate(zip(columns, heights, strict=True)):
        names = {"set": "two_views", "patient_id": f"{i}", "study_id": f"{i}"}
        frontal, lateral = backgrounds[2 * i], backgrounds[2 * i + 1] + shade
        row, first = rng.integers(px - size), cell * column + rng.integers(cell - size + 1)
        frontal[row : row + size, first : first + size] += 100
        start, high = rng.integers(px // 2), cell * height + rng.integers(cell - size // 2)
        lateral[high : high + size // 2, start : start + px // 2] += 100
        frontal, lateral = (
            {"image": pixels.encode(picture, "png"), "view": view, "image_id": f"{i} {view}", **names}
            for picture, view in ((frontal, "PA"), (lateral, "LATERAL"))
        )
        lacks = i < lacking * count
        said = [rng.choice(FRONTAL).format(COLUMNS[column])]
        said += [NO_LATERAL if lacks else rng.choice(LATERAL).format(HEIGHTS[height])]
        yield {
            **frontal,
            "frontals": [frontal],
            "laterals": [] if lacks else [lateral],
            "others": [],
            "has_frontal": True,
            "has_lateral": not lacks,
            "report": {"findings": " ".join(said), "impression": "", "text": ""},
            "column": int(column),
            "height": -1 if lacks else int(height),
        }


def vocabulary(folder):
    """Writes a vocabulary of all words that reports have, and returns its folder."""
    words = {word for text in (*FRONTAL, *LATERAL, NO_LATERAL) for word in text.split()} - {"{}"}
    tokenizer.save((*tokenizer.SPECIAL, *sorted(words | set(COLUMNS) | set(HEIGHTS))), folder)
    return folder


def batch(method, examples, seed=0):
    """What the method's views make of the studies, as one batch."""
    rng = np.random.default_rng(seed)
    rows = [method.views(example, rng) for example in examples]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Trainer:
    """Adam on random batches of studies held in memory, one compilation for all runs of a method."""

    def __init__(self, method, rate=1e-3, size=32):
        warm = optax.linear_schedule(0, rate, 50)
        self.method, self.optimizer, self.size = method, optax.adam(warm), size
        self._init = jax.jit(lambda key: method.init(key, None))
        self._step, self._measure = jax.jit(self._one), jax.jit(method.loss)

    def _one(self, params, state, opt_state, data, key, step):
        rows = jax.random.choice(jax.random.fold_in(key, 1), len(data["ids"]), (self.size,), replace=False)
        batch = jax.tree.map(lambda x: x[rows], data)

        def loss(params):
            value, aux = self.method.loss(params, state, batch, key, step)
            return value, aux.state

        (_, state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = self.optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    def fit(self, data, steps, seed=0):
        """(params, state) after so many steps on the studies of `data`, a batch."""
        data, root = jax.device_put(data), jax.random.key(seed)
        params, state = self._init(root)
        opt_state = self.optimizer.init(params)
        for i in range(steps):
            key = jax.random.fold_in(root, i)
            params, state, opt_state = self._step(params, state, opt_state, data, key, jnp.asarray(i))
        return params, state

    def measure(self, params, state, data):
        """(terms, report) of the method's own loss on `data`, as floats."""
        _, aux = self._measure(params, state, data, jax.random.key(0), 0)
        return jax.tree.map(float, (aux.terms, aux.monitors))
