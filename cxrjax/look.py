"""views.png: what the network is given of a few examples, and where a method shows it, what it makes of them.

It is drawn at the start and at the end of a run, and in between as config.look_every_steps says, always of the same
examples with the same draws. Once the network has changed a picture, the start and the newest stand side by side.
"""

from typing import Any

import cv2
import jax

from cxrjax import parallel, rng
from cxrjax.drawing import panels
from cxrjax.input import pipeline
from cxrjax.methods import Method
from cxrjax.track import Tracker

EXAMPLES = 4
NAME = "views"


class Drawing:
    """Draws a run's sheet, see the module; all processes must call it, since the network runs on their devices.

    sources, weights: of the run. The examples are those that its stream begins with, on every process the same.
    """

    def __init__(self, method: Method, sources: Any, weights: Any, seed: int, mesh: Any):
        self.stream = pipeline.dataset(sources, weights, method.views, EXAMPLES, seed)
        self.look = jax.jit(method.look, out_shardings=parallel.replicated(mesh))
        self.key = rng.fold(jax.random.key(seed), "look")

    def __call__(self, train_state: Any, tracker: Tracker, step: int) -> None:
        """Shows the sheet of a train state, as <workdir>/views.png and wherever the tracker shows pictures."""
        found = jax.device_get(self.look(train_state.params, train_state.state, self.stream[0], self.key))
        drawn = panels.sheet(found, f"step {step:,}" if step else "start")
        file = tracker.workdir / f"{NAME}.png"
        if step:
            before = cv2.imread(str(file)) if file.exists() else None
            drawn = panels.side_by_side(None if before is None else before[..., ::-1], drawn)
        if drawn is not None:
            tracker.picture(NAME, drawn, step)
