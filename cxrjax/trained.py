"""A trained model as the commands that use one see it: any folder of a run becomes a method with its parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from cxrjax import arrived, checkpoint, methods
from cxrjax import config as shared
from cxrjax.config import ConfigDict
from cxrjax.interop import families, huggingface
from cxrjax.methods import Method
from cxrjax.runtime import disk
from cxrjax.text import tokenizer


class Trained(NamedTuple):
    """A method and what it learned; `digest` changes whenever the parameters do.

    workdir: of the run, or for an encoder that others trained where its results go.
    """

    config: ConfigDict
    method: Method
    params: Any
    state: Any
    step: int
    digest: str
    workdir: Path


def load(directory: str | Path, step: int | str = "latest", dtype: str | None = None) -> Trained:
    """Reads the parameters and the state of one step, without those of the optimizer, on any machine.

    directory: a workdir, its checkpoints folder or one step's folder; or a folder of an encoder that others trained
    (`arrived`). step: number, "latest" or "best". dtype: of the method's computation; by default the config's.
    Raises CheckpointNotFound, CheckpointMismatch, and ValueError where the run's config.json is gone.
    """
    disk.check_local(directory)
    if huggingface.is_model(directory):
        config, method, params, state, digest = arrived.load(directory, dtype)
        return Trained(config, method, params, state, 0, digest, arrived.workdir(directory))
    found, workdir, config = settings(directory, step)
    computed = config.copy_and_resolve_references()
    if dtype is not None:
        computed.model.dtype = dtype
    if (workdir / tokenizer.VOCABULARY).is_file():
        computed.text.tokenizer = str(workdir)
    try:
        method = methods.make(computed)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{workdir / 'config.json'} is of another version of cxrjax, which this one cannot follow: {error}"
        ) from error
    params, state = jax.eval_shape(lambda: method.init(jax.random.key(0), methods.blank_batch(method)))
    stored = checkpoint.load_params(found, "latest", {"params": params, "state": state})
    return Trained(
        config, method, stored["params"], stored["state"], int(found.name), checkpoint.digest(found), workdir
    )


def settings(directory: str | Path, step: int | str = "latest") -> tuple[Path, Path, ConfigDict]:
    """The folder of one step, its workdir, and the config of its run; arguments and errors as of `load`.

    Of an encoder that others trained it is its folder, where its results go, and its config.
    """
    disk.check_local(directory)
    if huggingface.is_model(directory):
        config = arrived.settings(directory, families.read(directory))
        return Path(directory), arrived.workdir(directory), config
    found = Path(checkpoint.find(directory, step))
    workdir = next((above for above in list(found.parents)[:2] if (above / "config.json").is_file()), None)
    if workdir is None:
        raise ValueError(f"There is no config.json beside {found}; copy it from the workdir that the run was made in.")
    return found, workdir, shared.read(workdir / "config.json")
