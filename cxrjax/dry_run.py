"""What a command would do, without doing it: the whole config, then sets, steps, devices and folder. Makes nothing."""

import math
from collections.abc import Iterator
from pathlib import Path

import jax

from cxrjax import arrived, checkpoint, checks, grid, methods, optim, parallel, plan, sizes, stand_ins, trained
from cxrjax import config as shared
from cxrjax.config import ConfigDict, names
from cxrjax.evals import base, labelled, registry, run
from cxrjax.input import converted_sets
from cxrjax.reporting import significance


def tell(config: ConfigDict, workdir: Path | None) -> None:
    """Prints the config as config.json would hold it and a line for each thing that would happen.

    Raises ValueError for what would be refused, as far as that is known before any picture is read.
    """
    print(f"{shared.to_json(config)}\n", flush=True)
    for line in {"pretrain": _training, "evaluate": _evaluation}.get(config.job, _report)(config, workdir):
        print(line, flush=True)


def _training(config: ConfigDict, workdir: Path) -> Iterator[str]:
    mesh = parallel.run_mesh(config)
    parallel.check_batch(config.batch_size, mesh)
    for entry in checks.entries(config).values():
        yield f"judges     {entry['name']} on {_place(entry['set'])}, " + (
            f"every {entry['every_steps']} steps and at the end" if entry.get("every_steps") else "at the end"
        )
    with stand_ins.of(config) as standing:
        standing = standing.copy_and_resolve_references()
        standing.data.exclude_overlap = False  # comparing sets opens all of their pictures, and keeps what it found
        examples = plan.count_pictures(standing)
        total = optim.duration(config.duration, "total", config.batch_size, examples)
        method = methods.make(standing, total)
        params, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), methods.blank_batch(method)))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    yield f"trains     {config.method}, {parameters / 1e6:.2f} M parameters"
    yield f"from       {config.init_from or 'noise'}"
    yield f"on         {', '.join(map(_place, names(config.data.sets)))}; {examples:,} examples an epoch" + (
        ", less those of patients who are judged elsewhere" if shared.judged(config) else ""
    )
    yield f"for        {total:,} steps of {config.batch_size}, {total * config.batch_size / examples:.3g} epochs"
    yield f"devices    {parallel.num_devices(mesh)} × {jax.devices()[0].device_kind} ({jax.default_backend()})"
    if config.grid:
        yield f"runs       {len(grid.parse(config))}, one for each combination of {config.grid}"
    done = checkpoint.steps(workdir)
    yield f"folder     {workdir}: " + (f"goes on from step {done[-1]}" if done else "new")


def _evaluation(config: ConfigDict, workdir: Path | None) -> Iterator[str]:
    if config.checkpoint:
        found, of_run, settings = trained.settings(config.checkpoint, config.step)
        workdir = workdir or of_run
        if settings.method == arrived.NAME:
            px = sizes.said(settings.model.image_px)
            yield f"judges     the encoder of {found}, {settings.model.variant} at {px} px"
        else:
            yield f"judges     {settings.method} at step {found.name} of {of_run}"
    elif workdir is None:
        raise ValueError(
            "config.checkpoint is not given: give --config.checkpoint=runs/…, or a place with --workdir=DIR"
        )
    yield f"beside     {config.references or 'nothing'}"
    for key, entry in config.evals.items():
        sets = [shared.place({"data_dir": entry.get("data_dir"), "set": name}) for name in shared.sets_of(entry)]
        yield f"by         {entry.get('name') or key} on {', '.join(map(_place, sets))}"
        if converted_sets.is_converted(shared.place(entry)):
            yield from _shown_by(entry)
    yield f"devices    {jax.device_count()} × {jax.devices()[0].device_kind} ({jax.default_backend()})"
    yield f"folder     {workdir}/evals"


def _shown_by(entry: ConfigDict) -> Iterator[str]:
    """How small a difference the test patients of an entry can show, of the label with the most and the fewest."""
    full = run.complete(entry.to_dict())
    judge = registry.find(full["judge"])
    if judge.task_name or "test" not in judge.splits:
        return
    chosen, _ = run.sources(full)
    test = chosen["test"]
    blank = labelled.blank(test)
    key = base.targets(base.make_task(full["task"]), blank.labels, test.converted_set.label_names)
    found = []
    for name, values in zip(key.names, key.values[key.keep].T, strict=True):
        patients = blank.patient_ids[key.keep]
        present = set(patients[values == 1])
        absent = set(patients[values == 0]) - present
        smallest = significance.smallest_difference(len(present), len(absent))
        if math.isfinite(smallest):
            found.append(
                (smallest, f"{smallest:.3f} of {name} ({len(present):,} of {len(present | absent):,} patients)")
            )
    ends = [text for _, text in sorted(found)]
    if ends:
        span = " to ".join(dict.fromkeys((ends[0], ends[-1])))
        yield f"could show differences of AUROC from {span}, in 8 of 10 such test sets, of AUROCs near 0.8"


def _report(config: ConfigDict, workdir: Path) -> Iterator[str]:
    yield f"reports    {config.runs}"
    yield f"folder     {workdir}"


def _place(name: str) -> str:
    if converted_sets.is_converted(name):
        return name
    return f"{name} ({'would be simulated' if name.startswith('phantom') else 'not converted yet'})"
