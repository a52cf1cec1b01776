"""Settings that older versions wrote, with the keys of today: what was renamed, and what was added since."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

RENAMED = {
    "data.views": "data.projections",
    "evals.*.views": "evals.*.projections",
    "loss.shifted_looks": "loss.shifted_attention",
    "pool": "model.pool",
}
"""Keys of configs of older versions, and what they are called now; `*` stands for any one name."""

ADDED: dict[str, tuple[str | tuple[str, ...], Any]] = {
    "grid": ("data.sets", ""),
    "accumulate": ("batch_size", 1),
    "accumulate_batch_norm": ("batch_size", "whole"),
    "data.order": ("data.sets", "mixed"),
    "data.unit": ("data.sets", "picture"),
    "data.require": ("data.sets", ""),
    "data.report_copies": ("data.sets", None),
    "data.fraction_seed": ("data.sets", 0),
    "data.folds": ("data.sets", 0),
    "data.fold": ("data.sets", 0),
    "data.exclude_overlap": ("data.sets", False),
    "data.judged_on": ("data.sets", ""),
    "optim.lr_start": ("optim.lr_end", 0.0),
    "optim.lr_end_ratio": ("optim.lr_end", None),
    "optim.cosine_period": ("optim.schedule", "rest"),
    "optim.warmup_examples": ("optim.warmup_steps", None),
    "optim.warmup_includes_peak": ("optim.warmup_steps", False),
    "optim.wd_end": ("optim.wd", None),
    "optim.eps": ("optim.betas", 1e-8),
    "optim.trust_coefficient": ("optim.momentum", 0.001),
    "optim.lr_in_momentum": ("optim.momentum", True),
    "optim.clip_per_tensor": ("optim.grad_clip", None),
    "optim.clip_per_part": ("optim.grad_clip", None),
    "optim.sqrt_lr": ("optim.lr_end", None),
    "optim.held": ("optim.frozen", ()),
    "optim.held_share": ("optim.frozen", 0.0),
    "input.workers": ("input.threads", 0),
    "compile_cache": ("seed", True),
    "model.pool": ("model.patch_px", "cls"),
    "loss.gram_weight": ("loss.koleo_weight", 0.0),
    "loss.gram_refresh_steps": ("loss.koleo_weight", None),
    "heads.levels_sizes": ("heads.per_level_sizes", ()),
    "decoder.channels": ("recons_blocks", 1),
    "head.taps": ("head.features", ""),
    "head.widths": ("head.features", ""),
    "answer.inclusive_iou": ("answer.overlap", False),
    "encoder": (("policy", "head.layers"), "learned"),
    "loss.chunks": (("loss.share", "loss.kappa", "loss.sum_of_views", "loss.ita_weight", "loss.word_temperature"), 1),
    "loss.shifted_attention": ("loss.cta_weight", False),
    "augment": ("loss.share", {}),
}
"""Keys that configs of older versions lack: (a key of theirs that it belongs beside, or some; what held then)."""


def translated(
    settings: Mapping,
    renamed: Mapping[str, str] = RENAMED,
    added: Mapping[str, tuple[str | tuple[str, ...], Any]] = ADDED,
) -> tuple[dict, list[str]]:
    """Settings of an older version with today's keys, and what was changed: "old key → new key", "new key = value".

    settings: of a config.json, nested. renamed and added: as RENAMED and ADDED. A key of today that is there keeps its
    value.
    """
    found, changes = copy.deepcopy(dict(settings)), []
    for old, new in renamed.items():
        above, _, _ = old.partition(".*")
        every = _place(found, above.split(".")) if "*" in old else ("*",)
        for name in every or ():
            of_one, to = (key.replace("*", name) for key in (old, new))
            *path, last = of_one.split(".")
            place = _place(found, path)
            if place is None or last not in place:
                continue
            value = place.pop(last)
            *path, last = to.split(".")
            _made(found, path).setdefault(last, value)
            changes.append(f"{of_one} → {to}")
    for key, (beside, value) in added.items():
        here = any(_has(found, one) for one in ((beside,) if isinstance(beside, str) else beside))
        if here and not _has(found, key):
            *path, last = key.split(".")
            _made(found, path)[last] = value
            changes.append(f"{key} = {value!r}")
    return found, changes


def _has(settings: dict, key: str) -> bool:
    *path, last = key.split(".")
    return last in (_place(settings, path) or {})


def _place(settings: dict, path: Sequence[str]) -> dict | None:
    """The part of nested settings at a path; None where there is none."""
    for name in path:
        if not isinstance(settings.get(name), dict):
            return None
        settings = settings[name]
    return settings


def _made(settings: dict, path: Sequence[str]) -> dict:
    """The part of nested settings at a path, put there empty where there is none."""
    for name in path:
        settings = settings.setdefault(name, {})
    return settings
