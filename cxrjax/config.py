"""What every pre-training config shares, the words after the colon of --config, and what makes two runs the same."""

import contextlib
import difflib
import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ml_collections
from ml_collections import config_dict

from cxrjax import named, older

if TYPE_CHECKING:

    class ConfigDict(ml_collections.ConfigDict):
        """ml_collections' own, whose types leave out that values may be of any kind."""

        def __getattr__(self, attribute: str) -> Any: ...
        def __setattr__(self, attribute: str, value: Any) -> None: ...
        def __getitem__(self, key: str) -> Any: ...
        def __setitem__(self, key: str, value: Any) -> None: ...
        def copy_and_resolve_references(self, visit_map: Any = None) -> "ConfigDict": ...

else:
    ConfigDict = ml_collections.ConfigDict

FREE = (
    "checkpoint",
    "compile_cache",
    "evals",
    "grid",
    "histograms_every_steps",
    "input",
    "log_every_steps",
    "look_every_steps",
    "mesh",
    "profile_steps",
    "references",
    "sharding",
    "trackers",
)
"""Keys that may change between a run and its resumption: the numbers of the training do not depend on them."""

UNITS = (
    ("duration.total_steps", "duration.total_epochs", "duration.total_examples"),
    ("optim.warmup_steps", "optim.warmup_epochs", "optim.warmup_examples"),
    ("optim.lr", "optim.base_lr"),
)
"""Settings that say one thing in several units: one that is given takes the place of what the config file gives."""


def pretrain() -> ConfigDict:
    """The keys of the trainer, common to all methods; a config file fills in the method's own.

    Lists of names are comma-separated strings, so that they can be given on the command line. A placeholder is
    "not given".
    """

    # One placeholder per key: ConfigDict links keys that share one.
    def number():
        return config_dict.placeholder(float)

    def integer():
        return config_dict.placeholder(int)

    return ConfigDict(
        {
            "job": "pretrain",
            "method": "",
            "seed": 0,
            "batch_size": 256,
            "accumulate": 1,  # slices that the batch is taken in, to need less memory: cxrjax/accumulate.py
            "accumulate_batch_norm": "whole",  # or slice: a BatchNorm in the encoder then normalises by a slice
            # Exactly one of the three.
            "duration": {"total_steps": integer(), "total_epochs": number(), "total_examples": integer()},
            "data": {
                "sets": "phantom",
                "weights": (),  # one per set; () draws every picture equally often
                "order": "mixed",  # of several sets; or cyclic: all of one after all of the other
                "split": "train",
                "unit": "picture",  # or study: its pictures and its report together, for image–text methods
                "require": "",  # of a study: frontal, lateral, report; of a picture: boxes, or boxes or <label>
                "report_copies": integer(),  # of studies whose reports have the same words keep so many; None keeps all
                "projections": "PA,AP",  # "" takes every one
                "fraction": 1.0,  # of the patients
                "fraction_seed": 0,  # which of the set's nested lists
                "folds": 0,  # of a cross-validation by patient, in place of the set's own splits
                "fold": 0,  # which is the test
                "exclude_overlap": True,  # leaves out patients who are in val or test of another set that is judged
                "judged_on": "",  # sets to be judged later, beside those of evals
            },
            "init_from": "",  # folder of a Hugging Face ViT or ResNet, or a workdir: what its method encodes with
            "optim": {
                "name": "adamw",
                "base_lr": number(),
                "lr": number(),
                "sqrt_lr": number(),  # for a batch of 1024, with the root of the batch
                "lr_start": 0.0,  # where the warm-up begins
                "lr_end": 0.0,
                "lr_end_ratio": number(),  # lr_end as a share of the highest rate
                "schedule": "cosine",
                "cosine_period": "rest",  # of the steps after the warm-up, or total
                "warmup_steps": integer(),
                "warmup_epochs": number(),
                "warmup_examples": integer(),
                "warmup_includes_peak": False,
                "wd": 0.05,
                "wd_end": number(),  # a cosine from wd
                "betas": (0.9, 0.95),  # of AdamW
                "eps": 1e-8,  # of AdamW
                "momentum": 0.9,  # of SGD and LARS
                "trust_coefficient": 0.001,  # of LARS
                "lr_in_momentum": True,  # of LARS: False scales by the rate after the momentum
                "grad_clip": number(),  # of the norm of all gradients
                "clip_per_tensor": number(),
                "clip_per_part": number(),  # of encoder and heads, each by itself
                "layer_decay": number(),
                "lr_mults": (),
                "wd_mults": (),
                "frozen": (),
                "held": (),  # at a learning rate of 0 for the first held_share of the run
                "held_share": 0.0,
            },
            "input": {"threads": integer(), "workers": 0},  # threads: by default one for each core, 16 at most
            "compile_cache": True,  # keep compiled programs in the data folder, so that a resumed run finds them
            "sharding": "",  # or fsdp: each device keeps a part of parameters, moments and their averages
            "mesh": {"data": integer(), "fsdp": integer()},  # groups of devices, and how many share one train state
            "checkpoint": {
                "every_minutes": 10.0,
                "every_steps": integer(),
                "keep_latest": 2,
                "best_metric": "",  # name of an eval metric; "" keeps the latest only
            },
            "log_every_steps": 20,
            "look_every_steps": integer(),  # views.png is drawn so often, beside the start and the end: cxrjax/look.py
            "histograms_every_steps": integer(),  # of all parameters, for TensorBoard
            "trackers": "",  # where a run is shown as well: wandb, mlflow, trackio (cxrjax/trackers.py)
            "profile_steps": 0,  # a trace by JAX's profiler of so many steps in <workdir>/profile
            "evals": {},
            "references": "",  # what a finished run's probes judge as well: random, pixels
            "grid": "",  # a run for each combination, such as "data.fraction=0.01,0.1; seed=0,1,2": cxrjax/grid.py
        }
    )


def evaluation(references: str) -> ConfigDict:
    """The keys of a job that judges one checkpoint beside `references`; a config file fills in `evals`."""
    return ConfigDict(
        {
            "job": "evaluate",
            "checkpoint": "",  # a workdir, its checkpoints folder or one step
            "step": "latest",  # or best, or a number
            "seed": 0,
            "references": references,
            "compile_cache": True,
            "evals": {},
        }
    )


def nearest(given: str, known: Iterable[str], prefix: str = "") -> str:
    """ ". Did you mean 'lr'?", or "" where no known word comes close."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f". Did you mean {prefix + near[0]!r}?" if near else ""


def nearest_folder(given: str | Path) -> str:
    """ ". Did you mean 'runs/spcl'?", or "" where no folder beside has a name that comes close."""
    above, beside = Path(given).parent, []
    with contextlib.suppress(OSError):
        beside = [one.name for one in above.iterdir() if one.is_dir()]
    return nearest(Path(given).name, beside, "" if above == Path() else f"{above}/")


def words(arg: str | None, known: Sequence[str]) -> list[str]:
    """The words of `--config=file.py:word,word`; raises ValueError naming the nearest one that exists."""
    given = [word for word in (arg or "").split(",") if word]
    for word in given:
        if word not in known:
            raise ValueError(
                f"this config knows no {word!r} after the colon; it knows: {', '.join(known)}{nearest(word, known)}"
            )
    return given


def names(given: str | Sequence[str]) -> tuple[str, ...]:
    """ "a, b" → ("a", "b"); a sequence is taken as it is."""
    return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else tuple(given)


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def read(file: Path) -> ConfigDict:
    """A run's config.json with today's keys; raises ValueError naming the file where it is no JSON."""
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}); copy it from another checkpoint of the run, or start anew"
        ) from None
    current, changes = older.translated(found)
    if changes:
        logging.warning("%s was written by an older version of cxrjax; read as %s", file, "; ".join(changes))
    return ConfigDict(current)


def judged(config: ConfigDict) -> tuple[str, ...]:
    """The sets of evals and data.judged_on whose held-out patients are kept out of training, as `open_set` takes them.

    There are none where data.exclude_overlap is off. A run on one set alone is judged on that set's val and test, which
    it does not train on, so that set is not among them.
    """
    if not config.data.exclude_overlap:
        return ()
    evaluated = (
        place({"data_dir": entry.get("data_dir"), "set": name})
        for entry in config.evals.values()
        if entry.get("set")
        for name in sets_of(entry)
    )
    trained_on = set(names(config.data.sets))
    return tuple(sorted(name for name in {*names(config.data.judged_on), *evaluated} if trained_on != {name}))


def folds(config: ConfigDict) -> dict[str, int]:
    """{"folds", "fold"} of what is trained on; 0 where it is not cut."""
    return {key: config.data[key] for key in ("folds", "fold")}


def sets_of(entry: Mapping) -> list[str]:
    """The sets that an evaluation entry looks at: its own, and those of its `parts` ("chexpert; brax view=PA")."""
    parts = (part.split() for part in str(entry.get("parts") or "").split(";"))
    return list(dict.fromkeys([entry["set"], *(words[0] for words in parts if words)]))


def place(entry: Mapping) -> str:
    """The set of an evaluation entry, as `open_set` takes it: its name, or a path if the entry has a data_dir."""
    return str(Path(entry.get("data_dir") or "") / entry["set"])


def determining(config: ConfigDict) -> dict:
    """The part of a config that the numbers of a run depend on, as plain JSON values.

    Evaluations are not in it, but the other sets that they judge on are, in data.judged_on: these decide what is left
    out of training.
    """
    found = {key: value for key, value in config.to_dict().items() if key not in FREE}
    # Parts that are taken one after another change nothing, except slices that decide what a BatchNorm sees.
    if "chunks" in found.get("loss", {}):
        found["loss"] = {key: value for key, value in found["loss"].items() if key != "chunks"}
    if found.get("accumulate_batch_norm", "whole") == "whole" or found.get("accumulate") == 1:
        for key in ("accumulate", "accumulate_batch_norm"):
            found.pop(key, None)
    if not found.get("lora", {}).get("rank"):  # folders of runs without adapters keep their names
        found.pop("lora", None)
    if "data" in found:
        found["data"] = found["data"] | {"judged_on": ", ".join(judged(config))}
        for key, before in (("order", "mixed"), ("report_copies", None)):
            if found["data"].get(key, before) == before:  # what older runs did, whose folders keep their names
                found["data"].pop(key, None)
    return json.loads(json.dumps(found))


def digest(config: ConfigDict) -> str:
    """Six hex digits of everything that determines the numbers of a run."""
    return hashlib.sha256(json.dumps(determining(config), sort_keys=True).encode()).hexdigest()[:6]


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """ "key: old → new" for the keys that determine the numbers of a run."""
    a, b = (flat(determining(config)) for config in (old, new))
    missing = "(absent)"
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key, missing) != b.get(key, missing)]
    return [f"{key}: {a.get(key, missing)} → {b.get(key, missing)}" for key in keys]


def flat(tree: Mapping, prefix: str = "") -> dict:
    """{"a": {"b": 1}, "c": {}} → {"a.b": 1, "c": {}}."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def load(name: str, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config that a name stands for, from anywhere: "spcl:smoke", "mine.py:large", "runs/x/config.json".

    changes: by dotted key, {"optim.lr": 1e-3}; None takes back what may be left open.
    Raises ValueError with the nearest name, word or key. `cxrjax.config("spcl:smoke")` is the same.
    """
    file, words = named.find(name)
    config, changes = named.load(file).get_config(words), dict(changes or {})
    known = flat(config.to_dict())
    for key in changes:
        if key not in known and not any(other.startswith(f"{key}.") for other in known):
            raise ValueError(f"there is no setting {key}{nearest(key, known)}")
    try:
        config.update_from_flattened_dict(dict.fromkeys(other_units(changes, config)) | changes)
    except TypeError as error:  # names the key and both types
        raise ValueError(str(error)) from None
    return config


def other_units(given: Iterable[str], config: ConfigDict) -> list[str]:
    """Keys of a config that say in another unit what the given keys say."""
    given = set(given)
    others = [key for unit in UNITS if given & set(unit) for key in unit if key not in given]
    known = flat(config.to_dict())
    return [key for key in others if key in known]


class _Callable(ModuleType):
    """`cxrjax.config("spcl:smoke")` is what one writes, and `config` is this module."""

    def __call__(self, name: str, changes: Mapping[str, Any] | None = None) -> ConfigDict:
        return load(name, changes)


sys.modules[__name__].__class__ = _Callable
