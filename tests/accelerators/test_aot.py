"""Data exchanges are counted as often as they run, and compilers that are not there are named."""

import os

import jax
import pytest

from cxrjax.accelerators import aot, hardware

PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%body (carry: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %gathered = bf16[64,16]{1,0} all-gather(bf16[8,16]{1,0} %x), dimensions={0}
  ROOT %next = (s32[], f32[8,16]) tuple(s32[] %i, f32[8,16] %y)
}

ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %reduced = (f32[8,16]{1,0}, f32[4]{0}) all-reduce(f32[8,16]{1,0} %p, f32[4]{0} %q), to_apply=%add
  %begun = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) all-gather-start(bf16[8,16]{1,0} %h), dimensions={0}
  %ended = bf16[64,16]{1,0} all-gather-done((bf16[8,16]{1,0}, bf16[64,16]{1,0}) %begun)
  ROOT %loop = (s32[], f32[8,16]) while((s32[], f32[8,16]) %init), body=%body, condition=%more, backend_config={"known_trip_count":{"n":"12"}}
}
"""  # noqa: E501


def test_exchanges_in_loops_count_as_often_as_the_loop_runs():
    found = aot.collectives(PROGRAM)
    assert found == {
        "all-gather": aot.Collective(13, 13 * 64 * 16 * 2),
        "all-reduce": aot.Collective(1, 8 * 16 * 4 + 4 * 4),
    }


CONDITION = """
%more (carry: (s32[], f32[8,16])) -> pred[] {
  %layers = s32[]{:T(128)} constant(12)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  ROOT %go = pred[]{:T(512)} compare(OPERANDS), metadata={op_name="jit(step)/while/cond/lt"}
}
"""


@pytest.mark.parametrize(
    ("operands", "times"), [("%i, %layers), direction=LT", 12), ("%i, %n), direction=LT", 1), ("", 1)]
)
def test_a_loop_that_does_not_say_how_often_it_runs_is_asked_by_its_condition(operands, times):
    """The TPU's programs name no trips; a loop that waits for a value counts once."""
    loop = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"12"}}', "")
    condition = CONDITION.replace("OPERANDS)", operands) if operands else ""
    found = aot.collectives(loop.replace("\nENTRY", f"{condition}\nENTRY"))["all-gather"]
    assert found == aot.Collective(1 + times, (1 + times) * 64 * 16 * 2)


@pytest.mark.parametrize(("outside", "times"), [(True, 1), (False, 12)])
def test_an_exchange_that_is_laid_beside_many_steps_counts_once(outside, times):
    """Once a run where it begins outside of the loop, else once a round."""
    step = '  %g = f32[64,16]{1,0} all-gather(%x), channel_id=29, frontend_attributes={chain_id="0"}, dimensions={0}\n'
    program = PROGRAM.replace("  ROOT %next", f"{step}{step}  ROOT %next")
    program = program.replace("  ROOT %loop", f"{step}  ROOT %loop") if outside else program
    assert aot.collectives(program)["all-gather"] == aot.Collective(13 + times, (13 * 2 + times * 4) * 64 * 16)


def program(line):
    return f"ENTRY %main (x: f32[32,16]) -> f32[8,16] {{\n  %x = {line}\n}}\n"


@pytest.mark.parametrize("groups", ["{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}"])
def test_a_reduction_to_parts_counts_what_is_reduced(groups):
    """Its result is a part, and a quarter of what four devices exchange."""
    line = f"f32[8,16]{{1,0}} reduce-scatter(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    assert aot.collectives(program(line)) == {"reduce-scatter": aot.Collective(1, 32 * 16 * 4)}


@pytest.mark.parametrize(
    ("shapes", "kind", "numbers"),
    [
        ("((f32[2]{0}, f32[2,64]{1,0}), (f32[16]{0}, /*index=3*/f32[16,64]{1,0}))", "all-gather", 16 + 16 * 64),
        ("((f32[16]{0}, f32[16,64]{1,0}), (f32[2]{0}, f32[2,64]{1,0}))", "reduce-scatter", 16 + 16 * 64),
        ("((f32[16,64]{1,0}), f32[2,64]{1,0})", "reduce-scatter", 16 * 64),
        ("(f32[8]{0}, f32[8]{0}, u32[], u32[])", "collective-permute", 8),
    ],
)
def test_several_arrays_that_are_exchanged_as_one_count_all(shapes, kind, numbers):
    """The start of an exchange names what goes in and what comes out."""
    assert aot.collectives(program(f"{shapes} {kind}-start(%p, %q)")) == {kind: aot.Collective(1, 4 * numbers)}


def test_a_program_without_exchanges_has_none():
    compiled = jax.jit(lambda x: (x @ x).sum()).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()
    assert aot.collectives(compiled.as_text()) == {}


def test_a_missing_compiler_is_named_with_the_way_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))
    with pytest.raises(aot.NoCompiler, match=f"cuda and jax {jax.__version__} is not here: add --fetch"):
        aot.devices(hardware.parse("h100:8"))
    (tmp_path / "compilers" / "cuda-jax-0.9.9").mkdir(parents=True)
    with pytest.raises(aot.NoCompiler, match="there is one for another jax: cuda-jax-0.9.9"):
        aot.devices(hardware.parse("h100:8"))


def test_a_fetched_compiler_neither_keeps_programs_nor_locks_others_out(tmp_path, monkeypatch):
    """jax would warn of every program that it finds in its cache and cannot read back without the device."""
    changed = {}
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.syspath_prepend(tmp_path)
    aot._see(tmp_path / "compiler")
    assert changed["jax_enable_compilation_cache"] is False
    assert os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"


def test_the_packages_are_those_of_this_jax():
    assert aot.packages("cuda") == (f"jax-cuda13-plugin=={jax.__version__}", f"jax-cuda13-pjrt=={jax.__version__}")
    (libtpu,) = aot.packages("tpu")
    assert libtpu.startswith("libtpu==0.0.")


def test_jax_is_answered_for_the_target_and_asked_again_afterwards():
    from jax._src.cudnn import fused_attention_stablehlo as fused

    before = fused.check_compute_capability
    with aot.answering_for(hardware.parse("a100-40")):
        assert fused.check_cudnn_version() >= 90_000
        assert fused.check_compute_capability("8.0") and not fused.check_compute_capability("9.0")
    assert fused.check_compute_capability is before


def test_what_pip_says_of_a_missing_network_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(aot.NoCompiler, match="pip could not bring jax-cuda13-plugin==.* it said: ERROR: No matching"):
        aot.fetch("cuda")
    assert not list(tmp_path.rglob("*cuda-jax-*"))
