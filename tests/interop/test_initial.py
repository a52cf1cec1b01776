"""A run that starts from an encoder starts from exactly that encoder, in its momentum copy too."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from cxrjax import methods, parallel
from cxrjax.interop import huggingface, torch_vit
from cxrjax.interop.initial import initialise
from cxrjax.models import posemb
from tests import runs


class TrainState(NamedTuple):
    params: Any
    state: Any


def fresh(settings):
    """Train state of a new run that keeps a momentum encoder, and its shapes on eight devices."""
    images = np.zeros((1, 1, 32, 32, 1), np.uint8)
    params, _ = methods.make(settings).init(jax.random.key(1), {"image": images})
    train_state = TrainState(params, {"momentum": params, "queue": np.ones((4, 2))})
    return train_state, parallel.abstract(jax.eval_shape(lambda: train_state), parallel.make_mesh())


def assert_starts_from(train_state, encoder):
    jax.tree.map(np.testing.assert_array_equal, train_state.params["encoder"], encoder)
    jax.tree.map(np.testing.assert_array_equal, train_state.state["momentum"]["encoder"], encoder)
    np.testing.assert_array_equal(train_state.state["queue"], 1)


def test_start_from_a_run_of_ours(tmp_path):
    learned = runs.write(tmp_path / "run", runs.config())
    settings = runs.config(init_from=str(tmp_path / "run"))
    assert_starts_from(initialise(settings, *fresh(settings)), learned["encoder"])


def test_start_from_a_hugging_face_folder(tmp_path):
    learned = runs.write(tmp_path / "run", runs.config())["encoder"]
    weights, config = torch_vit.to_huggingface(
        learned, heads=2, patch_px=4, image_px=32, position_table=posemb.sincos_2d((8, 8), 64)
    )
    huggingface.write(tmp_path / "folder", weights, config, 0.4978, 0.2449)
    settings = runs.config(init_from=str(tmp_path / "folder"))
    assert_starts_from(initialise(settings, *fresh(settings)), learned)
    with pytest.raises(ValueError, match="needs standardise.mode='fixed'"):
        initialise(runs.config(init_from=settings.init_from, standardise__mode="per_image"), *fresh(settings))


def test_nothing_changes_without_init_from():
    settings = runs.config()
    train_state, abstract = fresh(settings)
    assert initialise(settings, train_state, abstract) is train_state


def test_wrong_folder_is_explained(tmp_path):
    settings = runs.config(init_from=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        initialise(settings, *fresh(settings))
