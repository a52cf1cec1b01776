"""Judges a checkpoint beside the references that it should beat: the job "evaluate" of a config."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from cxrjax import arrived, methods, trained
from cxrjax.config import ConfigDict, determining, names, to_json
from cxrjax.evals import encoders, shortcuts
from cxrjax.evals.base import Encoder, Result, bounds
from cxrjax.evals.run import EvaluationError, complete, evaluate, number_or_none, place, summary
from cxrjax.interop import huggingface
from cxrjax.reporting import compare, explained
from cxrjax.runtime import hosts


def run(config: ConfigDict, workdir: Path | None = None) -> dict[str, dict[str, Result]]:
    """Judges a checkpoint, and the references it should beat, by every entry of config.evals; prints what was found.

    config: as `config.evaluation` makes it. workdir: where results go, by default the run's.
    Returns {entry: {encoder: Result}} and writes the paired differences to versus-<reference>.json beside the results.
    Raises ValueError for an unknown reference, and for one that needs a checkpoint where none is given.
    """
    return _run(config, workdir)


def _run(config: Any, workdir: Path | None) -> dict[str, dict[str, Result]]:
    found = trained.load(config.checkpoint, config.step) if config.checkpoint else None
    if found is not None:
        workdir = Path(workdir or found.workdir)
        if huggingface.is_model(config.checkpoint):
            _note(found.config, workdir)
    elif workdir is None:
        raise ValueError(
            "config.checkpoint is not given: give the run to judge, --config.checkpoint=runs/…; or, to judge "
            "references alone, --config.references=pixels and a place for the results, --workdir=DIR"
        )
    subjects = [] if found is None else [_of_checkpoint(found)]
    subjects += [_reference(name, found, config.seed) for name in names(config.references)]
    results: dict[str, dict[str, Result]] = {}
    for key, entry in config.evals.items():
        entry = complete({**entry.to_dict(), "name": entry.get("name") or key})
        results[key] = {}
        for number, encoder in enumerate(subjects):
            as_reference = found is None or number > 0
            named = {**entry, "name": f"{entry['name']}-{encoder.name}"} if as_reference else entry
            trained_with = None if found is None or as_reference else found.config
            try:
                result = evaluate(encoder, named, workdir, config.seed, trained_with)
            except EvaluationError as error:
                if not isinstance(error.__cause__, shortcuts.NoMasks):
                    raise
                print(f"{entry['name']} on {entry['set']}: {encoder.name} was left out: {error.__cause__}", flush=True)
                continue
            results[key][encoder.name] = result
            print(f"{entry['name']} on {entry['set']}: {encoder.name}, {summary(result)}", flush=True)
            for note in result.notes:
                print(f"  note: {note}")
            if number and found is not None:
                _compare(workdir, entry, subjects[0], results[key][subjects[0].name], encoder, result, config.seed)
        if found is not None:
            areas = {name: result.metrics.get("auroc") for name, result in results[key].items()}
            if said := explained.sentence(subjects[0].name, areas):
                print(f"  {said}")
    return results


def _note(config: ConfigDict, workdir: Path) -> None:
    """Keeps with the results what was judged and how pictures were fitted. Raises ValueError in another's folder."""
    file = workdir / "config.json"
    if file.is_file() and file.read_text() != to_json(config):
        raise ValueError(
            f"{workdir} holds results or a run of another encoder than {config.init_from}: give the results another "
            "--workdir"
        )
    if hosts.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        file.write_text(to_json(config))


def references(config: ConfigDict, workdir: Path) -> None:
    """Judges what a finished run of pre-training should beat, config.references, by each of its linear probes.

    What was judged before is left as it is.
    """
    settings: Any = config
    wanted = names(settings.get("references", ""))
    entries = {
        key: complete({**entry.to_dict(), "name": entry.get("name") or key}) for key, entry in settings.evals.items()
    }
    probes = [entry for entry in entries.values() if entry["judge"] == "probe"]
    if not wanted or not probes:
        return
    found = trained.load(workdir)
    for name in wanted:
        encoder = _reference(name, found, settings.seed)
        for entry in probes:
            named = {**entry, "name": f"{entry['name']}-{encoder.name}"}
            if not (place(workdir, named, encoder.step) / "results.json").exists():
                evaluate(encoder, named, workdir, settings.seed)


def _of_checkpoint(found: trained.Trained) -> Encoder:
    described = {"name": arrived.name(found.config), "step": found.step, "config": determining(found.config)}
    return encoders.from_method(found.method, found.params, found.state, **described, attention=True)


def _reference(name: str, found: trained.Trained | None, seed: int) -> Encoder:
    """The encoder that config.references names; found: the checkpoint, if there is one."""
    if name == "pixels":
        return encoders.pixels()
    if name == "random" and found is not None:
        return _untrained(found, seed)
    shortcut = shortcuts.of(name, found and _of_checkpoint(found))
    if shortcut is not None:
        return shortcut
    raise ValueError(
        f"references: {name!r} is not to be had; choose of 'pixels' and 'metadata', and with a checkpoint of 'random' "
        f"and {', '.join(repr(one) for one in shortcuts.SAID if one != 'metadata')}"
    )


def _untrained(found: trained.Trained, seed: int) -> Encoder:
    batch = methods.blank_batch(found.method)
    return encoders.random_init(found.method, jax.random.key(seed), batch, determining(found.config))


def _compare(
    workdir: Path,
    entry: Mapping[str, Any],
    encoder: Encoder,
    result: Result,
    reference: Encoder,
    of_reference: Result,
    seed: int,
) -> None:
    """Prints and saves the paired differences of an encoder to a reference."""
    subjects = {encoder.name: [result.predictions], reference.name: [of_reference.predictions]}
    found = compare.compare(entry["task"].get("kind", ""), subjects, reference.name, entry["bootstrap"], seed)
    gains = {name: gain for name, gain in found.differences[encoder.name].items() if math.isfinite(gain.value)}
    first, gain = next(iter(gains.items()))
    print(f"  {encoder.name} minus {reference.name}: {first} {gain.value:+.3f}{bounds(gain.low, gain.high, '+.3f')}")
    numbers = {
        name: {key: number_or_none(value) for key, value in row._asdict().items()} for name, row in gains.items()
    }
    path = place(workdir, entry, encoder.step) / f"versus-{reference.name}.json"
    if hosts.is_first():
        path.write_text(json.dumps(numbers, indent=2) + "\n")
