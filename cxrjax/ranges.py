"""The range of every setting, and what is said of a value outside it, of a NaN and of a misspelt key."""

import difflib
import fnmatch
import math
from collections.abc import Iterator
from typing import Any

from cxrjax.config import ConfigDict, flat, nearest, pretrain

DTYPES = ("float32", "bfloat16")
"""What a network computes in. float16 is none of them: its gradients would need a scale of the loss."""

RANGES = {
    "seed": "whole [0, 4294967295]",
    "batch_size": "whole [1, inf)",
    "accumulate": "whole [1, inf)",
    "duration.total_steps": "whole [1, inf)",
    "duration.total_epochs": "(0, inf)",
    "duration.total_examples": "whole [1, inf)",
    "data.weights": "(0, inf)",
    "data.report_copies": "whole [1, inf)",
    "data.fraction": "(0, 1]",
    "data.fraction_seed": "whole [0, inf)",
    "data.fold*": "whole [0, inf)",
    "optim.lr": "(0, inf)",
    "optim.base_lr": "(0, inf)",
    "optim.lr_start": "[0, inf)",
    "optim.lr_end": "[0, inf)",
    "optim.lr_end_ratio": "[0, 1]",
    "optim.warmup_steps": "whole [0, inf)",
    "optim.warmup_epochs": "[0, inf)",
    "optim.warmup_examples": "whole [0, inf)",
    "optim.wd": "[0, inf)",
    "optim.wd_end": "[0, inf)",
    "optim.betas": "[0, 1)",
    "optim.eps": "(0, inf)",
    "optim.momentum": "[0, 1)",
    "optim.trust_coefficient": "(0, inf)",
    "optim.grad_clip": "(0, inf)",
    "optim.clip_per_tensor": "(0, inf)",
    "optim.clip_per_part": "(0, inf)",
    "optim.held_share": "[0, 1]",
    "optim.sqrt_lr": "(0, inf)",
    "optim.layer_decay": "(0, 1]",
    "lora.rank": "whole [0, inf)",
    "lora.alpha": "(0, inf)",
    "input.*": "whole [0, inf)",
    "checkpoint.every_minutes": "(0, inf]",
    "checkpoint.keep_latest": "whole [1, inf)",
    "profile_steps": "whole [0, inf)",
    "*every_steps": "whole [1, inf)",
    "momentum": "[0, 1]",
    "model.drop_path": "[0, 1)",
    "*temperature": "(0, inf)",
    "*.groups": "whole [1, inf)",
    "resamples": "whole [1, inf)",
    "threshold": "[0, 1]",
    "examples": "whole [0, inf)",
}
"""The range of every number of a setting; `*` stands for anything. None means "not given" and is always right."""


def check(config: ConfigDict) -> None:
    """Raises ValueError naming every setting outside its range (RANGES, DTYPES), every NaN and every misspelt key.

    A key is misspelt if a section of `pretrain` does not have it. The keys of methods are not known here: of these only
    one that comes close to a key of `pretrain` is taken for a slip.
    """
    said = [*_misspelt(config), *_outside(config)]
    if said:
        raise ValueError("; ".join(said))


def _outside(config: ConfigDict) -> Iterator[str]:
    for key, value in flat(config.to_dict()).items():
        numbers = [one for one in (value if isinstance(value, list | tuple) else [value]) if one is not None]
        if any(isinstance(one, float) and math.isnan(one) for one in numbers):
            yield f"{key} = {value}: it is not a number"
            continue
        if key.rpartition(".")[2] == "dtype" and value not in (None, "", *DTYPES):
            yield f"{key} = {value!r}: it must be {' or '.join(DTYPES)}{nearest(str(value), DTYPES)}"
        text = next((text for pattern, text in RANGES.items() if fnmatch.fnmatchcase(key, pattern)), "")
        if text and not all(_within(one, text) for one in numbers):
            kind = "a whole number" if text.startswith("whole") else "a number"
            each = "each must be" if isinstance(value, list | tuple) else "it must be"
            yield f"{key} = {value!r}: {each} {kind} in {text.removeprefix('whole ')}"


def _within(value: Any, text: str) -> bool:
    """Whether a value is a number in a range such as "[0, 1)", or if it says "whole" an integer."""
    whole, interval = text.startswith("whole "), text.removeprefix("whole ")
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _misspelt(config: ConfigDict) -> Iterator[str]:
    if config.job != "pretrain":
        return
    known = pretrain()
    for section in ("duration", "data", "optim", "input", "checkpoint"):
        for key in config[section]:
            if key not in known[section]:
                yield f"there is no setting {section}.{key}{nearest(key, known[section], f'{section}.')}"
    for key in config:
        if key not in known and difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            yield f"there is no setting {key}{nearest(key, known)}"
