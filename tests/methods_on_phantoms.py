"""Every method at the same number of pictures seen, on phantoms: probe and k-NN beside the untrained encoder.

    python tests/methods_on_phantoms.py --workdir runs/phantoms [--methods spcl,ijepa:released] [--seeds 0,1,2]
                                        [--steps 300]

A 2-layer ViT of width 64 at 64 px (a ResNet of width 16 for MLVICX) under each config's defaults, 128 pictures a step.
Prints a Markdown table: AUROC over the findings, mean over the seeds; the gain over the same encoder before training,
with a 95 % interval over resampled test patients, the same for all seeds; and the smallest effective rank and feature
deviation of the last steps, by which a collapse shows. A method with words after a colon is that config with these;
where the config without them was named too, the two are compared on the same patients. distill learns from the run of
`TEACHER` of the same seed, which must be there. What is finished is not run again. Not collected by pytest.
"""

import argparse
import json
import sys
import traceback
from pathlib import Path

import jax
import pandas

from cxrjax import config as shared
from cxrjax import evaluate, initial, methods, train
from cxrjax.phantom import phantom_set
from cxrjax.reporting import compare
from tests import runs

SET = "phantom_64"  # the default phantom's studies, stored at the size that is trained on
JUDGES = ("probe", "knn")
BATCH = 128
TEACHER = "simclr"


def pretrain_and_judge(name: str, seed: int, steps: int, workdir: Path) -> None:
    config = runs.config(*name.split(":")) if ":" in name else runs.config(name, "")
    config.seed = seed
    if "teachers" in config:
        config.teachers.init_from = str(workdir.with_name(f"{TEACHER}-{seed}"))
    config.model.variant = "resnet_test" if config.model.variant.startswith("resnet") else "test"
    config.data.sets = SET
    config.batch_size = BATCH
    config.duration.total_steps = steps
    config.optim.warmup_steps = steps // 10
    config.evals = {}
    config = initial.of_run(config)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(shared.to_json(config))
    train.fit(config, workdir)
    judged = runs.config("eval_probe", "")
    judged.checkpoint, judged.references, judged.seed = str(workdir), "random", seed
    judged.evals = {
        judge: {"judge": judge, "set": SET, "task": {"kind": "multilabel"}, "projections": "PA,AP"} for judge in JUDGES
    }
    evaluate.run(judged)


def predicted(workdirs: list[Path], judge: str, step: int) -> list[pandas.DataFrame]:
    return [pandas.read_parquet(w / "evals" / judge / str(step) / "predictions.parquet") for w in workdirs]


def compared(before: list[pandas.DataFrame], after: list[pandas.DataFrame]) -> list[str]:
    """AUROC of the two, and their difference with its interval."""
    found = compare.compare("multilabel", {"before": before, "after": after})
    gain = found.differences["after"]["auroc"]
    values = [f"{found.metrics[side]['auroc'].value:.3f}" for side in ("before", "after")]
    return [*values, f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"]


def row(workdirs: list[Path], steps: int) -> str:
    """One method's line of the table, over its runs of all seeds."""
    cells = []
    for judge in JUDGES:
        cells += compared(predicted(workdirs, f"{judge}-random", 0), predicted(workdirs, judge, steps))
    lines = [json.loads((w / "metrics.jsonl").read_text().splitlines()[-1]) for w in workdirs]
    watched = [min(line[f"train/monitor/{name}"] for line in lines) for name in ("effective_rank", "feature_std")]
    return " | ".join([*cells, *(f"{value:.2g}" for value in watched)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(methods.available()))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    phantom_set.build(name=SET, short_side=64)
    seeds, names = shared.names(args.seeds), shared.names(args.methods)
    failed = []
    for seed in seeds:
        for name in names:
            workdir = args.workdir / f"{name.replace(':', '-')}-{seed}"
            if (workdir / "evals" / JUDGES[-1] / str(args.steps) / "versus-random.json").exists():
                continue
            try:
                pretrain_and_judge(name, int(seed), args.steps, workdir)
            except Exception:
                traceback.print_exc()
                failed.append(f"{name} {seed}")
            jax.clear_caches()
    print("| method | probe, untrained | trained | gain | k-NN, untrained | trained | gain | rank | deviation |")
    print("|---|---|---|---|---|---|---|---|---|")
    done = {}
    for name in names:
        folders = {seed: args.workdir / f"{name.replace(':', '-')}-{seed}" for seed in seeds}
        done[name] = [folder for seed, folder in folders.items() if f"{name} {seed}" not in failed]
        if done[name]:
            print(f"| {name} | {row(done[name], args.steps)} |")
    print("| config | probe, without the words | with | difference | k-NN, without | with | difference |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        without = done.get(name.partition(":")[0], [])
        if ":" in name and len(without) == len(done[name]) > 0:
            cells = [compared(*(predicted(w, judge, args.steps) for w in (without, done[name]))) for judge in JUDGES]
            print(f"| {name} | {' | '.join(sum(cells, []))} |")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
