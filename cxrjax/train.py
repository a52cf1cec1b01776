"""The trainer: opens the sets, runs the step, judges, saves and resumes. Knows no method and no data set by name."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cxrjax import checkpoint, checks, histograms, initial, lineage, look, methods, optim, parallel, ranges, trackers
from cxrjax import config as shared
from cxrjax.config import ConfigDict, determining, judged, names
from cxrjax.evals import run as evals
from cxrjax.evals.encoders import from_method
from cxrjax.evals.features import source_digest
from cxrjax.input import converted_sets, overlap, paired, pipeline, source, studies
from cxrjax.methods import Method
from cxrjax.runtime import hosts, integrity, interruption, lock, profiling
from cxrjax.runtime.goodput import Goodput
from cxrjax.step import TrainState, program
from cxrjax.track import Tracker


class Run(NamedTuple):
    """Everything a config stands for before the first step: built once, used by `fit`, the benchmark and the tests."""

    method: Method
    mesh: Any
    sources: Sequence[Any]  # source.Source or studies.Studies
    batches: Any  # grain MapDataset of host batches; element i is step i
    total_steps: int
    step: Callable  # jitted, donates its TrainState
    init: Callable  # () -> TrainState on the mesh
    abstract: TrainState  # shapes and shardings
    rates: Callable  # step -> {"lr": …}
    remarks: tuple[str, ...]  # what was left out of training


def build(config: ConfigDict) -> Run:
    """Reads the config, opens the sets and traces the initialisation; nothing is trained or written."""
    ranges.check(config)
    mesh = parallel.run_mesh(config)
    parallel.check_batch(config.batch_size, mesh)
    # Made here to say what it learns from, and below once more, when the sources have told how many steps there are.
    sources, remarks = training_sources(config, methods.make(config))
    examples = sum(len(s) for s in sources)
    if config.batch_size > examples:
        remarks += (f"a batch of {config.batch_size} is more than all {examples} there are: some are in it twice",)
    total_steps = optim.duration(config.duration, "total", config.batch_size, examples)
    method = methods.make(config, total_steps)
    pipeline.check(sources, method.views)
    batches = pipeline.dataset(
        sources,
        config.data.weights or None,
        method.views,
        config.batch_size,
        config.seed,
        jax.process_index(),
        jax.process_count(),
        config.data.order,
    )
    return Run(
        method, mesh, sources, batches, total_steps, *program(config, method, mesh, total_steps, examples), remarks
    )


def training_sources(config: ConfigDict, method: Method) -> tuple[Sequence[Any], tuple[str, ...]]:
    """What the run trains on, without the patients of other sets that it is judged on, and sentences about these."""
    folds: dict[str, Any] = checks.folds(config)
    unit, required = config.data.unit, config.data.require
    unknown = set() if unit == "picture" else set(names(required)) - {"frontal", "lateral", "report"}
    if unit not in ("picture", "study") or unknown:
        raise ValueError(
            f"data.unit={unit!r} with data.require={required!r}: unit is 'picture' or 'study', and a study can be "
            "required to have: frontal, lateral, report"
        )
    copies = config.data.report_copies
    if unit == "picture" and copies is not None:
        raise ValueError(f"data.report_copies={copies} is of studies with reports, and data.unit is {unit!r}")
    of_pictures: dict[str, Any] = source.required(required, method.box_labels) if unit == "picture" else {}

    def chosen(name, without=()):
        try:
            return source.select(
                converted_sets.open_set(name),
                config.data.split,
                projections=names(config.data.projections) or None,
                exclude_patient_ids=without,
                fraction=config.data.fraction,
                fraction_seed=config.data.fraction_seed,
                **of_pictures,
                **folds,
            )
        except ValueError as error:
            given = ", ".join(f"{key}={config.data[key]!r}" for key in ("sets", "split", "projections"))
            raise ValueError(f"data ({given}): {error}") from error

    sets = names(config.data.sets)
    left_out = overlap.exclusions([chosen(name) for name in sets], judged(config))
    pictures = [chosen(*pair) for pair in zip(sets, left_out.patient_ids, strict=True)]
    if method.box_labels:
        checks.labels(config, pictures)
    if unit == "picture":
        return pictures, left_out.sentences
    parts: dict[str, Any] = {f"require_{part}": True for part in names(required)} | {"report_copies": copies}
    parts |= {"read": method.joint.words} if method.joint is not None else {}
    whole = [studies.studies(each, **parts) for each in pictures]
    return whole, (*left_out.sentences, *(repr(each) for each in whole if any(each.left_out.values())))


def fit(config: ConfigDict, workdir: Path) -> TrainState:
    """Trains until the config's duration, resuming from the newest complete checkpoint in `workdir`.

    Saves every checkpoint.every_minutes (or every_steps), on SIGTERM and at the end. Raises track.NonFinite, naming the
    term, when a logged or saved step holds NaN or infinity; SystemExit(143) once the state is safe after a SIGTERM.
    """
    others = names(config.trackers if "trackers" in config else "")
    trackers.check(others)
    checks.judge_keys(config)  # before sets are opened: a phantom may have to be rendered for it
    time_of = Goodput()
    with time_of.span("opening"):
        run = build(config)
        checks.judges(config)
    if hosts.is_first():
        _print_setting(config, run, workdir)
    best = config.checkpoint.best_metric or None
    with (
        interruption.caught() as interrupted,
        checkpoint.open(
            workdir / "checkpoints", keep_latest=config.checkpoint.keep_latest, keep_best=1 if best else 0, metric=best
        ) as saved,
    ):
        start = saved.latest_step() or 0
        hosts.agree(
            {"settings": shared.digest(config), "the newest checkpoint": start, "pictures": _pictures(run.sources)},
            "start all hosts with the same command, on the same workdir and the same converted sets",
        )
        _check_pictures(workdir, run.sources, start)
        if run.method.joint is not None and hosts.is_first():
            paired.keep_vocabulary(config, workdir)
        if start:
            with time_of.span("restoring"):
                train_state = saved.restore(start, run.abstract)
            print(f"resuming from step {start} of {run.total_steps}", flush=True)
        else:
            with time_of.span("compiling"):
                if hosts.is_first():
                    integrity.replace(workdir / lineage.FILE, lineage.of(config))
                encoders = initial.encoders(config, run.abstract)  # before `init` compiles: they may not fit
                train_state = initial.initialise(encoders, run.init(), run.abstract)
        hosts.agree(
            {"the arrays at the start": lambda: hosts.local_digest(train_state)}, "give all hosts the same files"
        )
        with (
            Tracker(
                workdir,
                run.total_steps,
                config.batch_size,
                config.log_every_steps,
                start,
                time_of,
                shared.flat(config.to_dict()),
                others,
            ) as tracker,
            profiling.traced(workdir / "profile", config.profile_steps if hosts.is_first() else 0, start) as after_step,
        ):
            weights = config.data.weights or None
            draw = look.Drawing(run.method, run.sources, weights, config.seed, run.mesh)
            if start == 0:
                with time_of.span("compiling"):  # which is nearly all that the first drawing takes
                    draw(train_state, tracker, 0)
            # A run may have ended after it saved the step, and before its judges had looked at it.
            judges = _due(checks.entries(config), run, start) if start else {}
            undone = hosts.is_first() and not (tracker.judged and _judged(judges, start, workdir))
            if judges and parallel.any_process(undone):
                _judge(config, run, train_state, start, saved, tracker, workdir, judges)
            return _loop(config, run, train_state, start, saved, tracker, workdir, interrupted, after_step, draw)


def _loop(
    config: ConfigDict, run, train_state, start, saved, tracker, workdir, interrupted, after_step, draw
) -> TrainState:
    batches = pipeline.iterator(run.batches, start, pipeline.threads(config.input.threads), config.input.workers)
    saved_at, newest, entries, votes = time.monotonic(), start, checks.entries(config), hosts.Votes()
    every, best = config.checkpoint.every_steps, config.checkpoint.best_metric

    time_of, scalars = tracker.time_of, {}

    def save(done, scalars):
        tracker.check_finite(done, scalars)
        lock.check(workdir)
        with time_of.span("saving"):
            saved.save(done, train_state, {"step": done}, force=True)

    for done in range(start + 1, run.total_steps + 1):
        batch = _next(batches, scalars, time_of)
        with time_of.span("compiling") if done == start + 1 else contextlib.nullcontext():
            train_state, scalars = run.step(train_state, parallel.to_global(batch, run.mesh))
        after_step(done, scalars)
        if tracker.due(done):
            tracker.log(done, scalars | {f"train/{name}": value for name, value in run.rates(done - 1).items()})
        # Hosts must agree on what their own clocks and signals say, or they would wait for each other for ever.
        late = (time.monotonic() - saved_at) / 60 >= config.checkpoint.every_minutes
        stop, late = votes.cast(interrupted.asked, late)
        judges = _due(entries, run, done)
        # Judges may take long, and fail: what they look at is saved before, if it is to be saved at all.
        if stop or late or done == run.total_steps or (every and done % every == 0) or (judges and best):
            save(done, scalars)
            saved_at, newest = time.monotonic(), done
            votes.forget()
        if stop:
            with time_of.span("saving"):
                saved.wait()
            _leave(done, saved, interrupted, time_of)
        every_look: Any = config.get("look_every_steps")
        if done == run.total_steps or (every_look and done % every_look == 0):
            with time_of.span("judging"):
                draw(train_state, tracker, done)
        every_histogram: Any = config.get("histograms_every_steps")
        if every_histogram and done % every_histogram == 0:
            for name, found in histograms.of(train_state.params, run.mesh).items():
                tracker.histogram(done, f"params/{name}", *found)
        if judges:
            tracker.check_finite(done, scalars)
            try:
                _judge(config, run, train_state, done, saved, tracker, workdir, judges)
            except evals.EvaluationError:
                if newest != done:
                    save(done, scalars)
                raise
    with time_of.span("saving"):
        saved.wait()
    if hosts.is_first():
        print(time_of.sentence(), flush=True)
    return train_state


def _next(batches, scalars, time_of) -> dict:
    """The next batch; what it lets the device wait for counts as time of the input."""

    def is_idle():
        return all(value.is_ready() for value in jax.tree.leaves(scalars))

    began, idle = time.monotonic(), is_idle()
    batch = next(batches)
    # Where the step before ended in between it is not known when: half of the time is as good a guess as any.
    time_of.add("input", (time.monotonic() - began) * (1.0 if idle else 0.5 if is_idle() else 0.0))
    return batch


def _leave(done, saved, interrupted, time_of) -> None:
    """Ends the process after step `done` was saved, and says what is on disk."""
    there = saved.latest_step()
    if hosts.is_first():
        what = f"step {there} is saved" if there == done else f"step {done} could not be saved, the newest is {there}"
        print(f"{interrupted.name}: {what}; the same command resumes there\n{time_of.sentence()}", flush=True)
    raise SystemExit(interrupted.code)


def _judged(judges, step, workdir) -> bool:
    """Whether these judges have written what they found at a step."""
    folders = (evals.place(workdir, evals.complete(entry), step) for entry in judges.values())
    return all((folder / "results.json").exists() for folder in folders)


def _judge(config: ConfigDict, run, train_state, step, saved, tracker, workdir, judges) -> None:
    """Lets judges look at a step, logs what they find, and ranks the step by it if it is kept."""
    with tracker.time_of.span("judging"):
        metrics = _evaluate(config, run, train_state, step, workdir, judges)
    saved.rank(step, metrics)
    tracker.log(step, metrics)
    tracker.flush()  # its line tells a resumed run that nothing is left to do for this step


def _due(entries, run, done) -> dict[str, dict]:
    """The entries of the judges that look at step `done`; all do at the end."""

    def is_due(entry) -> bool:
        every = entry.get("every_steps")
        return bool(done == run.total_steps or (every and done % every == 0))

    return {name: entry for name, entry in entries.items() if is_due(entry)}


def _evaluate(config: ConfigDict, run, train_state, done, workdir, judges) -> dict[str, float]:
    """Scalars of these judges, entries by name, at step `done`."""
    described = {"name": config.method, "step": done, "config": determining(config), "mesh": run.mesh}
    last = done == run.total_steps
    encoder = from_method(run.method, train_state.params, train_state.state, **described, attention=last)
    started_from = _started_from(config) if last else None
    scalars = {}
    for name, entry in judges.items():
        result = evals.evaluate(encoder, entry, workdir, config.seed, started_from)
        scalars |= evals.scalars(entry, result)
        print(f"step {done}: {name} on {entry['set']}: {evals.summary(result)}", flush=True)
    return scalars


def _started_from(config: ConfigDict) -> ConfigDict | None:
    """The config of the run that the encoder comes from; None where there is none, or no longer."""
    with contextlib.suppress(checkpoint.CheckpointNotFound):
        return initial.run_of(config)


def _check_pictures(workdir, sources, start):
    """Notes in pictures.json what a run trains on; raises ValueError where a resumed one would train on other pictures.

    The settings alone do not tell: sets can be converted again, and so share other pictures with what is judged.
    """
    file = workdir / "pictures.json"
    now = _pictures(sources)
    try:
        before = json.loads(file.read_text()) if start and file.exists() else now
    except ValueError:
        raise ValueError(
            f"{file} is damaged, so it is not known whether the run began with the pictures of now; copy it "
            "from a backup, or delete it to resume with these"
        ) from None
    changed = [name for name in now.keys() | before.keys() if now.get(name) != before.get(name)]
    if changed:
        counts = ", ".join(f"{name} with {part['pictures']:,} pictures" for name, part in sorted(before.items()))
        raise ValueError(
            f"{workdir} holds a run on {counts}, but {', '.join(sorted(changed))} would now give other pictures: sets "
            "were converted again, or what is left out for those it is judged on changed. Choose another --workdir, or "
            "put the sets back to resume it"
        )
    if not start and hosts.is_first():
        integrity.replace(file, now)


def _pictures(sources) -> dict[str, dict]:
    return {f"{s.converted_set.name}/{s.split}": {"pictures": len(s), "digest": source_digest(s)} for s in sources}


def _print_setting(config: ConfigDict, run, workdir):
    counts = (run.abstract.params, run.abstract.state.get("frozen", {}))
    learned, frozen = (sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in counts)
    said = f"{learned:,} parameters learn and {frozen:,} stay" if frozen else f"{learned / 1e6:.2f} M parameters"
    sets = ", ".join(f"{s.converted_set.name}/{s.split} ({len(s)})" for s in run.sources)
    print(
        f"{config.method}: {said}, {parallel.num_devices(run.mesh)} device(s)\n"
        f"pictures: {sets}\n"
        + "".join(f"{sentence}\n" for sentence in run.remarks)
        + f"{run.total_steps} steps of {config.batch_size}; workdir {workdir}",
        flush=True,
    )
