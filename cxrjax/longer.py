"""A finished run that is trained longer: its duration grows, and it goes on from its last step with its optimizer.

What depends on the whole duration, such as the rate's schedule and momenta of targets, follows the longer one from that
step on. So the run is not the one that a longer duration would have given from the start, and config.lengthened lists
the steps at which its duration grew.
"""

import json
from collections.abc import Callable
from pathlib import Path

from cxrjax import checkpoint, optim
from cxrjax import config as shared
from cxrjax.config import ConfigDict
from cxrjax.runtime import hosts, integrity

FINISHED = "finished.json"
"""What a run of a grid has when it is over."""
PICTURES = "pictures.json"
"""What a run trains on, as the trainer writes it at its start."""


def carried_over(before: ConfigDict, config: ConfigDict) -> ConfigDict:
    """The config with what the run in the folder says of having been made longer already."""
    return _with(config, before.lengthened) if before.get("lengthened") and "lengthened" not in config else config


def can_be(workdir: Path, before: ConfigDict, config: ConfigDict) -> bool:
    """Whether a run is finished, and the config differs from its own in nothing but a longer duration."""
    others = [each for each in shared.differences(before, config) if not each.startswith("duration.")]
    done = checkpoint.steps(workdir)
    if others or not done or not (workdir / PICTURES).exists():
        return False
    return done[-1] == _steps(workdir, before) < _steps(workdir, config)


def lengthened(workdir: Path, before: ConfigDict, config: ConfigDict) -> ConfigDict:
    """The config of the longer run, which says when it grew; prints what that means."""
    step, total = _steps(workdir, before), _steps(workdir, config)
    if hosts.is_first():
        print(
            f"trained longer: from step {step} to {total}, with the optimizer's state. Rates and all else that follows "
            "the whole duration follow the longer one from here on; config.json says so under `lengthened`",
            flush=True,
        )
    return _with(config, (*(before.lengthened if "lengthened" in before else ()), step))


def put(workdir: Path, write: Callable[[], None]) -> None:
    """Lets `write` put the longer run's config.json in place; a kill at any moment leaves steps that can be read.

    Raises ValueError where a step is not of the config.json that is replaced.
    """
    steps = [checkpoint.find(workdir, step) for step in checkpoint.steps(workdir)]
    foreign = [sentence for step in steps for sentence in integrity.foreign(step)]
    if foreign:
        raise ValueError("; ".join(foreign))
    for step in steps:
        integrity.bind(step, to_config=False)
    write()
    (workdir / FINISHED).unlink(missing_ok=True)
    for step in steps:
        integrity.bind(step, to_config=True)


def _with(config: ConfigDict, steps: tuple[int, ...]) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.lengthened = tuple(steps)
    return config


def _steps(workdir: Path, config: ConfigDict) -> int:
    """Steps of the whole run, which for epochs depend on the pictures that it trains on."""
    known = json.loads((workdir / PICTURES).read_text())
    examples = sum(part["pictures"] for part in known.values())
    return optim.duration(config.duration, "total", config.batch_size, examples)
