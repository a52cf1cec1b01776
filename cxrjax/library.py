"""Pre-training from Python, in a script or a notebook: the main job without its command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrjax import command, encoder, main, ranges
from cxrjax import config as shared
from cxrjax.encoder import Encoder
from cxrjax.runtime import bucket


def pretrain(
    config: str,
    *,
    sets: str | Path | Sequence[str | Path] | None = None,
    steps: int | None = None,
    workdir: str | Path | None = None,
    judge: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> Encoder:
    """Trains what a config says and returns the encoder; the same call again resumes, or finds it done.

    config: "spcl", "spcl:smoke", a file of your own, a run's config.json. sets: names or folders of converted sets,
    such as `make_set` returns; by default the config's. steps: in place of its duration.
    workdir: by default runs/<config>-<digest>. judge: False leaves out the config's judges, and the sets they need.
    changes: other settings by dotted key, {"optim.lr": 1e-3}. Raises ValueError in a sentence, as the command does.
    """
    changes = dict(changes or {})
    if sets is not None:
        changes["data.sets"] = ",".join(map(str, [sets] if isinstance(sets, str | Path) else sets))
    if steps is not None:
        changes["duration.total_steps"] = steps
    settings = shared.load(config, changes)
    if settings.get("job") != "pretrain":
        raise ValueError(f"{config!r} is a config of the job {settings.get('job')!r}; pretrain takes one that trains")
    if not judge:
        with settings.unlocked():
            settings.evals = {}
            settings.checkpoint.best_metric = ""  # it would be one of theirs
    ranges.check(settings)
    settings = main.whole(settings, workdir)
    folder = main.folder(settings, command.title(config, settings), workdir)
    main.fit(settings, folder, str(workdir) if bucket.is_address(workdir) else None)
    return encoder.load(folder)
