"""A plan is the compiled step's own figures; its advice is tried; steps compile for a GPU that is not there."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from cxrjax import initial, methods, parallel, plan, stand_ins
from cxrjax.accelerators import aot, hardware
from cxrjax.speed import cost
from cxrjax.step import program
from tests import runs

# ResNets have no attention; the others' pictures, or reports, go through a Transformer.
WITHOUT_ATTENTION = {"mlvicx"}
COMPILED = ("spcl:float32", *(f"{name}:bfloat16" for name in methods.available()))
PROCESSES = 4  # that several cores share


@pytest.fixture
def on_cpu(monkeypatch):
    """Targets whose devices are the CPU's, with as much memory as a test says."""

    def target(count=1, memory_bytes=2**34):
        device = hardware.devices()["h100"]._replace(memory_bytes=memory_bytes)
        return hardware.Target(device, count)

    monkeypatch.setattr(aot, "devices", lambda target: jax.devices()[: target.count])
    monkeypatch.setattr(aot, "compiled", lambda lowered, target: lowered.compile())
    return target


def test_memory_is_what_xla_holds_at_most(on_cpu, phantom_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config = runs.config(batch_size=16)
    found = plan.plan(config, on_cpu(8), pictures=1600)
    params, _ = jax.eval_shape(methods.make(config).init, jax.random.key(0), methods.blank_batch(methods.make(config)))
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found.total_steps == 6 and found.pictures == 1600
    assert found.memory.arguments > 3 * 4 * found.parameters  # parameters and two moments
    assert found.checkpoint_bytes == pytest.approx(found.memory.arguments, rel=0.05)
    (gradients,) = [each for kind, each in found.collectives.items() if kind == "all-reduce"]
    assert gradients.bytes == pytest.approx(4 * found.parameters, rel=0.1)


def a_plan(target, memory, batch_size=64):
    counted = cost.Cost(1e9, 3e9, 4e9, 0.0)
    exchanges = {"all-reduce": aot.Collective(2, 900_000_000), "all-gather": aot.Collective(1, 450_000_000)}
    return plan.Plan(target, 10**6, counted, batch_size, aot.Memory(*memory), exchanges, 6400, 100, 2**30)


def test_times_are_those_of_the_peak_and_the_links():
    found = a_plan(hardware.parse("h100:8"), (2**30, 2**31, 3 * 2**30))
    assert found.step_seconds() == pytest.approx(2 * 4e9 * 64 / (8 * 989.4e12))
    assert found.step_seconds(0.25) == pytest.approx(4 * found.step_seconds())
    assert found.exchange_seconds == pytest.approx((2 * 0.9 + 0.45) / 450)
    text = "\n".join(plan.lines(found))
    assert "3.00 GiB of 79.11 GiB" in text and ": fits" in text and "100 steps of 64" in text
    assert plan.row("spcl", found).count("|") == plan.HEADING.splitlines()[0].count("|")


def test_changes_are_tried_from_the_smallest():
    target = hardware.parse("h100")
    config = runs.config(batch_size=64, model__remat="dots")
    need = int(8 * target.device.memory_bytes)
    tried = list(plan.candidates(config, a_plan(target, (2**30, need, need + 2**30))))
    assert tried[0] == {"model.remat": "full"}
    assert all(change["model.remat"] == "full" for change in tried)
    sizes = [change["batch_size"] for change in tried if "batch_size" in change]
    assert sizes == [32, 16, 8]
    too_much = int(target.device.memory_bytes)
    assert list(plan.candidates(config, a_plan(target, (too_much, 1, too_much))))[1:] == []


def test_sharding_is_tried_where_it_helps():
    target = hardware.parse("h100:8")
    usable = plan.USABLE * target.device.memory_bytes

    def tried(state, temporaries, **changes):
        found = a_plan(target, (int(state * usable), int(temporaries * usable), int((state + temporaries) * usable)))
        return list(plan.candidates(runs.config(batch_size=64, model__remat="dots", **changes), found))

    sharded, full = {"sharding": "fsdp"}, {"model.remat": "full"}
    # Enough by itself; only with recomputation; a state too large for one device, with parts of the batch; too small.
    assert tried(0.5, 0.6)[:3] == [sharded, full, {**full, **sharded}]
    assert tried(0.4, 1.2)[:2] == [full, {**full, **sharded}]
    assert [each["sharding"] for each in tried(1.1, 3.0) if "accumulate" in each] == 3 * ["fsdp"]
    assert sharded not in tried(0.05, 2.0) and {**full, **sharded} not in tried(0.05, 2.0)
    # A mesh that was chosen stays.
    for changes in ({"mesh__fsdp": 2}, {"mesh__data": 8}, {"sharding": "fsdp"}):
        assert not any("sharding" in each for each in tried(0.5, 0.6, **changes))


def test_sharding_is_the_advice_where_the_train_state_is_what_does_not_fit(on_cpu, phantom_dir, monkeypatch, capsys):
    """The memory of the pretended devices lies between what parts of the train state need and what whole ones do."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config = runs.config(batch_size=16)
    whole, parts = (plan.plan(_with(config, sharding=word), on_cpu(8)) for word in ("", "fsdp"))
    assert parts.memory.arguments < whole.memory.arguments / 5
    assert parts.checkpoint_bytes == whole.checkpoint_bytes
    target = on_cpu(8, memory_bytes=int((whole.memory.peak + parts.memory.peak) / 2 / plan.USABLE))
    plan.advise(config, whole._replace(target=target), None)
    assert capsys.readouterr().out.splitlines()[-1] == "fits with --config.sharding=fsdp"


def test_advice_followed_fits(on_cpu, phantom_dir, monkeypatch, capsys):
    """The memory of the pretended device lies between what half of the batch needs and what the whole does."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config = runs.config(batch_size=64, model__remat="full")
    whole, half = (plan.plan(_with(config, batch_size=size), on_cpu()) for size in (64, 32))
    target = on_cpu(memory_bytes=int((whole.memory.peak + half.memory.peak) / 2 / plan.USABLE))
    found = whole._replace(target=target)
    assert not found.fits
    plan.advise(config, found, None)
    advice = capsys.readouterr().out.splitlines()[-1]
    assert advice.startswith("fits with --config.")
    key, value = advice.removeprefix("fits with --config.").split("=")
    assert plan.plan(_with(config, **{key: int(value)}), target).fits
    with pytest.raises(ValueError, match="nothing that was tried fits"):
        plan.advise(config, whole._replace(target=on_cpu(memory_bytes=1000)), None)


def _with(config, **changes):
    config = config.copy_and_resolve_references()
    config.update(changes)
    return config


def test_sets_that_are_not_here_are_stood_in_for_and_counted_as_published(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))
    config = runs.config("supervised", "", data__sets="chestxray14,chexpert")
    with stand_ins.of(config) as standing_in:
        assert plan.count_pictures(standing_in) == 112_120 + 223_648
        params, _ = jax.eval_shape(methods.make(standing_in).init, jax.random.key(0), None)
    assert len(jax.tree.leaves(params)) > 4
    assert list(tmp_path.iterdir()) == []
    config.data.sets = "mine"
    with stand_ins.of(config) as standing_in, pytest.raises(ValueError, match="'mine' is not converted .* --pictures"):
        plan.count_pictures(standing_in)


def test_a_config_of_another_job_is_refused(on_cpu):
    options = SimpleNamespace(on="h100", fetch=False, pictures=None)
    with pytest.raises(ValueError, match="only pre-training configs"):
        plan.main(runs.config("eval_probe", ""), "eval_probe", options)


def test_a_target_is_named_and_used_whole(on_cpu):
    options = SimpleNamespace(on=" , ", fetch=False, pictures=None)
    with pytest.raises(ValueError, match="no target ''; known are h100, h200"):
        plan.main(runs.config(), "spcl", options)
    with pytest.raises(ValueError, match="mesh {'data': 4, 'fsdp': 1} leaves .* of 8 × NVIDIA .* idle: plan for 4"):
        plan.plan(runs.config(mesh__data=4), on_cpu(8), pictures=1600)


def run_with_compiler(*arguments, platform="cuda"):
    """What `python -m …` did in a process of its own; skips where the compiler was not fetched."""
    if not (place := aot.folder(platform)).is_dir():
        pytest.skip(f"no compiler for {platform} in {place}: python -m cxrjax.plan … --fetch brings it")
    command, environment = [sys.executable, "-m", *arguments], {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)


def compile_all(names):
    """The lines of tests.compile_for_gpu, by name."""
    done = run_with_compiler("tests.compile_for_gpu", *names)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(names), done.stderr[-2000:]
    return {each["name"]: each for each in found}


@pytest.mark.parametrize("names", [COMPILED[part::PROCESSES] for part in range(PROCESSES)], ids=",".join)
def test_steps_compile_for_a_gpu_with_fused_attention_in_half_precision_alone(names):
    for name, found in compile_all(names).items():
        assert not found["error"], found
        fused = name.endswith("bfloat16") and name.split(":")[0] not in WITHOUT_ATTENTION
        assert (found["forward"] > 0, found["backward"] > 0) == (fused, fused), found


def test_eight_gpus_gather_parts_once_and_reduce_gradients_to_parts_once():
    """Beside them S-PCL exchanges embeddings, what is too small for parts, and numbers to log."""
    (found,) = compile_all(["spcl:float32:8"]).values()
    assert not found["error"], found
    assert found["in_parts"] > 300_000 and found["exchanges"].keys() == {"all-gather", "all-reduce", "reduce-scatter"}
    for kind in ("all-gather", "reduce-scatter"):
        count, size = found["exchanges"][kind]
        assert count <= 5 and found["in_parts"] <= size < found["in_parts"] + 20_000, found
    assert found["exchanges"]["all-reduce"][1] < 20_000


RECIPES = [
    (name, word)
    for name in methods.available()
    for word in ("chestxray14", "mimic_cxr")
    if word in runs.words(name) and name not in ("segment", "detect")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "word"), RECIPES)
def test_recipes_start_on_a_gpu_up_to_the_compiler(name, word, tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = initial.of_run(runs.config(name, word))
    count = math.gcd(8, config.batch_size)  # FaNe's authors had four, and a batch that eight do not divide
    mesh = parallel.make_mesh({"data": count})
    with stand_ins.of(config) as standing_in, aot.answering_for(hardware.parse(f"h100:{count}")):
        method = methods.make(standing_in, 100_000)
        made = program(standing_in, method, mesh, 100_000, 100_000)
        made.init.trace().lower(lowering_platforms=("cuda",))
        batch = plan.abstract_batch(method, config.batch_size, mesh)
        made.step.trace(made.abstract, batch).lower(lowering_platforms=("cuda",))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "word"), RECIPES)
def test_recipes_compile_at_real_size(name, word, tmp_path):
    """Minutes each; docs/records has what they need."""
    config, options = runs.config(name, word), []
    if "teachers" in config:
        runs.write(tmp_path / "teacher", runs.config("mae"), seed=0)
        options = [f"--config.teachers.init_from={tmp_path / 'teacher'}"]
    compile_recipe(name, word, f"h100,h100:{math.gcd(8, config.batch_size)}", *options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "word"), [("spcl", "chestxray14"), ("mae", "chestxray14"), ("sista", "mimic_cxr")])
def test_recipes_compile_for_a_slice_of_tpus(name, word):
    """SISTA's batch of 144 does not divide over 64 chips."""
    options = ["--config.batch_size=192"] if name == "sista" else []
    compile_recipe(name, word, "v5e-64,v5e-64", *options, platform="tpu")


def compile_recipe(name, word, targets, *options, platform="cuda"):
    """Plans a recipe for two targets."""
    recipe = f"--config=configs/{name}.py:{word}"
    done = run_with_compiler("cxrjax.plan", recipe, f"--on={targets}", *options, platform=platform)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("| yes |") + done.stdout.count("| no |") == 2
