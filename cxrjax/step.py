"""The training step: one pure function of the train state and a batch, jitted over a mesh. Reads no pictures."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from cxrjax import accumulate, methods, optim, parallel, rng
from cxrjax.config import ConfigDict
from cxrjax.methods import Method
from cxrjax.methods.base import Params


class TrainState(NamedTuple):
    """All that a step reads and writes; `params` is what the optimizer updates, `state` the method's own rest."""

    step: jax.Array
    params: Any
    state: Any
    opt_state: Any


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    root: jax.Array,
    slices: int = 1,
    mesh: Mesh | None = None,
) -> Callable:
    """The pure training step (TrainState, batch) -> (TrainState, scalars), to be jitted by the caller.

    root: the run's key. Randomness is folded from (root, "loss", step), so a resumed step draws what it would have.
    slices: of the batch, over which the gradient is accumulated, see `accumulate`.
    mesh: over which the train state lies in parts, see `parallel`; None where it is whole on every device.
    """
    value_and_gradient = accumulate.value_and_grad(method, slices)

    def step(train_state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        index, params, state, opt_state = train_state
        key = rng.fold(root, "loss", index)
        used = (params, state) if mesh is None else parallel.gathered((params, state), mesh)
        (loss, aux), gradient = value_and_gradient(*used, batch, key, index)
        gradient = gradient if mesh is None else parallel.scattered(gradient, mesh)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = cast(Params, optax.apply_updates(params, updates))
        scalars = {"train/loss": loss}
        scalars |= {f"train/term/{name}": value for name, value in aux.terms.items()}
        scalars |= {f"train/monitor/{name}": value for name, value in aux.monitors.items()}
        scalars |= {"train/norm/gradient": optax.global_norm(gradient), "train/norm/update": optax.global_norm(updates)}
        return TrainState(index + 1, params, method.after(params, aux.state, index), opt_state), scalars

    return step


class Program(NamedTuple):
    """What is compiled for a run."""

    step: Callable  # jitted, donates its TrainState
    init: Callable  # () -> TrainState on the mesh
    abstract: TrainState  # shapes and shardings
    rates: Callable  # step -> {"lr": …}


def program(
    config: ConfigDict, method: Method, mesh: Mesh, total_steps: int, examples: int, example: Any = None
) -> Program:
    """The step of a run and its initialisation for the devices of a mesh, which may be none of this machine.

    examples: in one epoch. example: a batch of any size, read for its shapes; by default one of a black picture.
    Raises ValueError for slices of the batch that it cannot be taken in.
    """
    root = jax.random.key(config.seed)
    example = methods.blank_batch(method) if example is None else example
    params = jax.eval_shape(lambda: method.init(rng.fold(root, "init"), example)[0])
    optimizer, rates = optim.make(config.optim, params, total_steps, config.batch_size, examples / config.batch_size)

    def init() -> TrainState:
        params, state = method.init(rng.fold(root, "init"), example)
        return TrainState(jnp.zeros((), jnp.int32), params, state, optimizer.init(params))

    abstract = parallel.abstract(jax.eval_shape(init), mesh)
    accumulate.check(config, method, abstract.state, mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = jax.jit(
        make_step(method, optimizer, root, config.accumulate, mesh),
        in_shardings=(layout, parallel.batch_sharding(mesh)),
        out_shardings=(layout, parallel.replicated(mesh)),
        donate_argnums=0,
    )
    return Program(step, jax.jit(init, out_shardings=layout), abstract, rates)
