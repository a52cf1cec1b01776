"""Pre-train, evaluate or report, as the config says.

    python -m cxrjax.main --config=configs/spcl.py [--config.any.key=value …] [--workdir DIR]

The same command again resumes where the last one stopped. Without --workdir the run lives in runs/<config>-<digest>,
where the digest stands for every setting that changes a number.
"""

import contextlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from cxrjax import checkpoint, command, longer, ranges
from cxrjax import config as shared
from cxrjax.accelerators import compile_cache
from cxrjax.config import ConfigDict
from cxrjax.datasets import schema
from cxrjax.runtime import bucket, disk, hosts, leftovers, lock


def main(config: ConfigDict, name: str, options: Any) -> None:
    """Dispatches on config.job; see `command.run` for the arguments."""
    jobs = {"pretrain": pretrain, "evaluate": evaluate, "report": report}
    if config.job not in jobs:
        raise ValueError(f"config.job is {config.job!r}; it must be one of {', '.join(jobs)}")
    ranges.check(config)
    if config.job != "pretrain" or not bucket.is_address(options.workdir):
        disk.check_local(options.workdir or "")
    if options.distributed or options.coordinator:
        print(hosts.connect(options.coordinator, options.processes, options.process, options.bind), flush=True)
    jobs[config.job](config, name, options)


def pretrain(config: ConfigDict, name: str, options: Any) -> None:
    """One run, or where config.grid is given one for each of its combinations."""
    from cxrjax import dry_run

    config = whole(config, options.workdir, builds=not options.dry_run)
    workdir = folder(config, f"{name}-grid" if config.grid else name, options.workdir)
    if options.dry_run:
        return dry_run.tell(config, workdir)
    fit(config, workdir, options.workdir if bucket.is_address(options.workdir) else None)


def whole(config: ConfigDict, workdir: str | Path | None, builds: bool = True) -> ConfigDict:
    """A config of pre-training with all that its numbers depend on: the model of init_from, JAX's own precision.

    workdir: the run's, where it was given. builds: as of `initial.of_run`.
    """
    from cxrjax import initial

    resumed = bool(workdir) and bool(checkpoint.steps(workdir))
    return _with_precision(initial.of_run(config, resumed, builds=builds))


def fit(config: ConfigDict, workdir: Path, bucket_address: str | None = None) -> None:
    """Trains what the config says into a folder that no other process uses, or resumes it, or makes it longer.

    bucket_address: of the bucket that the folder stands for, see `bucket.mirrored`.
    """
    from cxrjax import grid, train

    print(compile_cache.use(config.compile_cache), flush=True)
    missing = [place for place in (workdir, *workdir.parents) if not place.exists()]
    mirrored = bucket.mirrored(bucket_address, workdir) if bucket_address else contextlib.nullcontext()
    with lock.hold(workdir), _taken_away_if_refused(workdir, missing), mirrored:
        if hosts.is_first():
            leftovers.tidy(workdir)
        if config.grid:
            grid.run(config, workdir, claim, train.fit)
        else:
            train.fit(claim(workdir, config), workdir)
            _tell(config, workdir)
    print(f"done: {bucket_address or workdir}", flush=True)


def _tell(config: ConfigDict, workdir: Path) -> None:
    """Says in words what the run reached beside config.references; on one host, where it has any."""
    from cxrjax import evaluate
    from cxrjax.reporting import in_words

    if config.get("references") and jax.process_count() == 1:
        evaluate.references(config, workdir)
        for said in in_words.of_run(workdir, config.method):
            print(said, flush=True)


def evaluate(config: ConfigDict, name: str, options: Any) -> None:
    from cxrjax import dry_run, evaluate

    workdir = folder(config, name, options.workdir) if options.workdir else None
    if options.dry_run:
        return dry_run.tell(config, workdir)
    print(compile_cache.use(config.compile_cache), flush=True)
    evaluate.run(config, workdir)


def report(config: ConfigDict, name: str, options: Any) -> None:
    from cxrjax import dry_run
    from cxrjax.reporting import results_page

    workdir = folder(config, name, options.workdir)
    if options.dry_run:
        return dry_run.tell(config, workdir)
    page = results_page.write(config, workdir)
    print(f"done: {page}, with report.md and report.json beside it", flush=True)


def folder(config: ConfigDict, name: str, given: str | Path | None) -> Path:
    """The folder of a run: the given one, or one under runs/ that its settings name.

    Of one that is trained in a bucket it is the folder of this machine that the run works in. Raises ValueError for a
    bucket where only a disk will do.
    """
    if config.job == "pretrain" and bucket.is_address(given):
        if jax.process_count() > 1:
            raise ValueError(f"{given} is for one host: several need a folder that all of them see")
        return bucket.place(str(given), schema.data_dir() / "buckets")
    disk.check_local(given or "")
    return Path(given or Path("runs") / f"{name}-{shared.digest(config)}")


def claim(workdir: Path, config: ConfigDict) -> ConfigDict:
    """Writes config.json, or checks that the run that has begun in `workdir` has the same settings; returns the config.

    A finished run may be given a longer duration and nothing else: it goes on from its last step with its optimizer,
    and config.lengthened says at which steps that was done (see `longer`). Raises ValueError listing the settings that
    differ: resuming under other settings would be neither run. A run that was refused before its first step leaves the
    folder to the next.
    """
    file = workdir / "config.json"
    if not file.exists() and (there := checkpoint.steps(workdir)):
        raise ValueError(
            f"{workdir} has checkpoints of the steps {there} and no config.json that says how they were made: "
            "put it back to resume them, or choose another --workdir"
        )
    if file.exists() and ((workdir / "pictures.json").exists() or checkpoint.steps(workdir)):
        before = shared.read(file)
        config = longer.carried_over(before, config)
        changed = shared.differences(before, config)
        if changed and longer.can_be(workdir, before, config):
            config = longer.lengthened(workdir, before, config)
            if hosts.is_first():
                longer.put(workdir, lambda: _write(file, config))
        elif changed:
            raise ValueError(
                f"{workdir} holds a run with other settings ({'; '.join(changed[:10])}); choose another --workdir, "
                "or give the old settings to resume it. A finished run can be given a longer duration"
            )
        return config
    if config.get("lengthened"):
        raise ValueError(
            f"this is the config of a run that was made longer after the steps {tuple(config.lengthened)}, and no "
            "single run repeats that: train for the shorter duration first, then for the longer one in one --workdir"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    _write(file, config)
    return config


def _write(file: Path, config: ConfigDict) -> None:
    partial = file.with_name(f".config.json.{uuid.uuid4().hex}")  # hosts may come here at the same time
    partial.write_text(shared.to_json(config))
    partial.rename(file)


@contextlib.contextmanager
def _taken_away_if_refused(workdir: Path, missing: Sequence[Path]) -> Iterator[None]:
    """Leaves no folder of a run that ends before anything of it was logged, judged or saved.

    missing: the folders, from `workdir` up, that were not there before. To be called while the folder is owned.
    """
    try:
        yield
    except BaseException:
        begun = (one.stat().st_size for name in ("metrics.jsonl", "results.json") for one in workdir.rglob(name))
        saved = (checkpoint.steps(one) for one in workdir.rglob("checkpoints"))
        if workdir in missing and hosts.is_first() and not any(begun) and not any(saved):
            shutil.rmtree(workdir, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: another run is beside
                for place in missing[1:]:
                    place.rmdir()
        raise


def _with_precision(config: ConfigDict) -> ConfigDict:
    """The config with what JAX was told of its numbers by the environment, where that is not the default."""
    told = {
        "enable_x64": (jax.config.values["jax_enable_x64"], False),
        "prng": (jax.config.values["jax_default_prng_impl"], "threefry2x32"),
    }
    found = {key: value for key, (value, default) in told.items() if value != default}
    if found:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.jax = found
    return config


def _define_flags() -> None:
    flags.DEFINE_bool("dry_run", False, "print the whole config and what would happen; make nothing")
    flags.DEFINE_bool("distributed", False, "join the other hosts of a TPU slice or Slurm job before anything else")
    flags.DEFINE_string("coordinator", None, "join other hosts by hand: address:port of the first process")
    flags.DEFINE_integer("processes", None, "how many processes there are, with --coordinator")
    flags.DEFINE_integer("process", None, "which of them this is, from 0, with --coordinator")
    flags.DEFINE_string("bind", None, "address:port that the first process listens on (default: all addresses)")
    flags.DEFINE_string(
        "workdir", None, "folder of the run, or gs://BUCKET/FOLDER; the same one resumes (default: under runs/)"
    )


if __name__ == "__main__":
    command.run(main, __doc__, _define_flags)
