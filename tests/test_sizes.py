"""Sizes of pictures that are no squares: what a config says, on the command line and again from a run's config.json."""

import json
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

import cxrjax
from cxrjax import config as shared
from cxrjax import initial, methods, saved_config, sizes
from tests import runs

CONFIGS = Path(__file__).parents[1] / "configs"


def test_one_number_is_a_square_and_two_are_height_and_width():
    assert sizes.sides(224) == (224, 224) and sizes.sides([448, 384]) == sizes.sides((448, 384)) == (448, 384)
    assert sizes.plain([224, 224]) == 224 and sizes.plain([448, 384]) == (448, 384)
    assert sizes.grid((448, 384), 16) == (28, 24) and sizes.grid(224, 14) == (16, 16)
    assert (sizes.said(224), sizes.said((448, 384))) == ("224", "448 x 384")


@pytest.mark.parametrize("px", [0, -8, 224.0, True, "224", None, (1, 2, 3), (224,), (224, 0), [32, "a"]])
def test_what_is_no_size_is_refused(px):
    with pytest.raises(ValueError, match=r"image_px = .* is no size of pictures: .* such as 448,384"):
        sizes.sides(px)


def test_patches_must_cover_both_sides():
    for px in ((48, 30), (30, 48), 30):
        with pytest.raises(ValueError, match=r"Pictures of .*30.* px cannot be cut into patches of 8 px: each side"):
            sizes.grid(px, 8)


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        ("spcl.py:smoke", "48,32", (48, 32)),
        ("spcl.py:smoke", "64", 64),
        ("mlvicx.py:smoke", "(48, 32)", (48, 32)),
        ("finetune.py:smoke", "48,32", (48, 32)),
    ],
)
def test_the_command_line_takes_either(file, given, expected):
    values, argv = flags.FlagValues(), ["", f"--config={CONFIGS / file}", f"--config.model.image_px={given}"]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    assert values.config.model.image_px == expected


def test_a_run_says_it_again(tmp_path):
    """Its digest is that of neither square; read back it is the same run, and can be changed to a square."""
    config = cxrjax.config("spcl:smoke", {"model.image_px": (48, 32)})
    (tmp_path / "config.json").write_text(shared.to_json(config))
    assert json.loads((tmp_path / "config.json").read_text())["model"]["image_px"] == [48, 32]
    again = saved_config.get_config(str(tmp_path / "config.json"))
    assert shared.differences(again, config) == [] and shared.digest(again) == shared.digest(config)
    assert shared.digest(config) not in {shared.digest(runs.config(model__image_px=px)) for px in (32, 48)}
    assert sizes.plain(methods.make(again).image_px) == (48, 32)
    again.model.image_px = 32
    assert shared.digest(again) == shared.digest(runs.config()), "a square is what it always was"


def test_a_size_that_is_none_is_refused_before_anything_is_made():
    with pytest.raises(ValueError, match="image_px = 'wide' is no size of pictures"):
        methods.make(runs.config(model__image_px="wide"))


def test_learned_positions_of_a_square_start_a_run_that_is_none(tmp_path):
    """And the other way round: tables are resized from one grid to the other."""
    for px, other in ((32, (48, 32)), ((48, 32), 32)):
        runs.write(tmp_path / f"{px}", runs.config(model__image_px=px, model__positions="learned"))
        config = runs.config(model__image_px=other, model__positions="learned", init_from=str(tmp_path / f"{px}"))
        method = methods.make(config)
        batch = methods.blank_batch(method)
        params, _ = jax.eval_shape(method.init, jax.random.key(0), batch)
        found = initial._from_run(config.model, config.init_from, params["encoder"], {})[0]
        rows, columns = sizes.grid(other, 4)
        assert found["pos_embed"].shape == (rows * columns, 64)
