"""A run that starts from an encoder starts from exactly that encoder, in its momentum copy and statistics too."""

import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cxrjax import initial, methods, parallel, trained
from cxrjax.config import flat
from cxrjax.initial import of_run
from cxrjax.input import paired
from cxrjax.interop import huggingface, torch_bert, torch_resnet, torch_swin, torch_vit
from cxrjax.methods.base import encoder_params
from cxrjax.models import posemb, swin, text_tower
from cxrjax.models.bert import VARIANTS, Bert
from cxrjax.text import tokenizer
from tests import runs
from tests.methods import oracles


class TrainState(NamedTuple):
    params: Any
    state: Any


def noise_of(init, *arguments):
    """What `init` makes of a key and the arguments, of noise in its place: nothing is compiled."""
    return oracles.noise(jax.eval_shape(init, jax.random.key(1), *arguments))


def fresh(settings):
    """Train state of a new run that keeps a momentum encoder, of noise, and its shapes on eight devices."""
    method = methods.make(settings)
    params, state = noise_of(method.init, methods.blank_batch(method))
    train_state = TrainState(params, {**state, "momentum": params, "queue": np.ones((4, 2))})
    return train_state, parallel.abstract(jax.eval_shape(lambda: train_state), parallel.make_mesh())


def initialise(settings, train_state, abstract):
    return initial.initialise(initial.encoders(settings, abstract), train_state, abstract)


def assert_starts_from(train_state, encoder):
    jax.tree.map(np.testing.assert_array_equal, train_state.params["encoder"], encoder)
    jax.tree.map(np.testing.assert_array_equal, train_state.state["momentum"]["encoder"], encoder)
    np.testing.assert_array_equal(train_state.state["queue"], 1)


def test_start_from_a_run_of_ours(tmp_path):
    learned = runs.write(tmp_path / "run", runs.config())
    settings = runs.config(init_from=str(tmp_path / "run"))
    assert_starts_from(initialise(settings, *fresh(settings)), learned["encoder"])


def test_start_from_a_hugging_face_folder(tmp_path):
    learned = runs.write(tmp_path / "run", runs.config())["encoder"]
    weights, config = torch_vit.to_huggingface(
        learned, heads=2, patch_px=4, image_px=32, position_table=posemb.sincos_2d((8, 8), 64)
    )
    huggingface.write(tmp_path / "folder", weights, config, 0.4978, 0.2449)
    settings = runs.config(init_from=str(tmp_path / "folder"))
    assert_starts_from(initialise(settings, *fresh(settings)), learned)
    with pytest.raises(ValueError, match="needs standardise.mode='fixed'"):
        initialise(runs.config(init_from=settings.init_from, standardise__mode="per_image"), *fresh(settings))


def test_resnets_start_with_their_running_statistics(tmp_path):
    """From a run, and from what an export of it would be; the projector starts anew."""
    resnet = {"name": "simclr", "model__variant": "resnet_test"}
    runs.write(tmp_path / "run", runs.config(**resnet))
    learned = trained.load(tmp_path / "run")
    encoder, statistics = learned.params["encoder"], learned.state["batch_stats"]["encoder"]
    exported = torch_resnet.to_huggingface(encoder, statistics, variant="resnet_test", image_px=32)
    huggingface.write(tmp_path / "folder", *exported, 0.4978, 0.2449)
    start = fresh(runs.config(**resnet))
    for folder in ("run", "folder"):
        train_state = initialise(runs.config(**resnet, init_from=str(tmp_path / folder)), *start)
        assert_starts_from(train_state, encoder)
        jax.tree.map(np.testing.assert_array_equal, train_state.state["batch_stats"]["encoder"], statistics)
        jax.tree.map(np.testing.assert_array_equal, train_state.params["projector"], start[0].params["projector"])
    with pytest.raises(ValueError, match="holds a ResNet, and model.variant='test' is none"):
        initialise(runs.config(init_from=str(tmp_path / "folder")), *fresh(runs.config()))


@pytest.mark.parametrize(("source", "target"), [("moco_v3", "simclr"), ("simclr", "moco_v3"), ("moco_v3", "moco_v3")])
def test_what_one_method_freezes_the_other_learns(tmp_path, source, target):
    """MoCo v3 keeps the patch embedding outside of what it learns; both layouts hold the same encoder."""
    runs.write(tmp_path / "run", runs.config(source))
    learned = trained.load(tmp_path / "run")
    positions = learned.config.model.positions
    settings = runs.config(target, init_from=str(tmp_path / "run"), model__positions=positions)
    started = initialise(settings, *fresh(settings))
    wanted, found = (encoder_params(tree.params, tree.state) for tree in (learned, started))
    assert set(found) == set(wanted) > {"patch_embed"}
    assert ("patch_embed" in started.params["encoder"]) == (target == "simclr")
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_network_that_encodes_is_taken(tmp_path):
    """DINO's teacher, for another method and for both networks of a new DINO."""
    runs.write(tmp_path / "run", runs.config("dino"))
    learned = trained.load(tmp_path / "run")
    teacher = learned.state["target"]["encoder"]
    assert np.any(teacher["cls"] != learned.params["encoder"]["cls"])
    for settings in (runs.config("mae", model__positions="learned"), runs.config("dino")):
        settings.init_from = str(tmp_path / "run")
        train_state, abstract = fresh(settings)
        started = initialise(settings, train_state, abstract)
        assert_starts_from(started, teacher)
        if settings.method == "dino":
            jax.tree.map(np.testing.assert_array_equal, started.state["target"]["encoder"], teacher)
            jax.tree.map(np.testing.assert_array_equal, started.params["prototypes"], train_state.params["prototypes"])


@pytest.mark.parametrize("frozen_layers", [0, 1])
def test_the_text_encoder_starts_from_a_bert_of_fewer_words(tmp_path, frozen_layers, capsys):
    words = tokenizer.Tokenizer(tokenizer.train(["Clear lungs. No pleural effusion."] * 2))
    theirs = Bert(words.vocab_size, *VARIANTS["test"], max_length=64)
    ids = jnp.asarray(words.encode("No effusion.", 16).ids)[None]
    known = noise_of(theirs.init, ids, ids > 0)["params"]
    torch_bert.write(tmp_path / "bert", known, words, heads=VARIANTS["test"].heads)
    with_heads = load_file(tmp_path / "bert" / "model.safetensors")
    with_heads |= {name: np.zeros(3, np.float32) for name in ("pooler.dense.bias", "cls.predictions.bias")}
    save_file(with_heads, tmp_path / "bert" / "model.safetensors")
    settings = runs.config("convirt", text__frozen_layers=frozen_layers, text__init_from=str(tmp_path / "bert"))
    train_state, abstract = fresh(settings)
    started = initialise(settings, train_state, abstract)
    assert "its encoder is read; not used are the arrays of pooler, cls\n" in capsys.readouterr().out
    frozen = started.state["frozen"]["text"]
    assert set(frozen) == ({"embeddings", "lower"} if frozen_layers else set())
    out = jax.jit(text_tower.make(settings.text).apply)(started.params["text"], frozen, ids, ids > 0)
    expected = jax.jit(theirs.apply)({"params": known}, ids, ids > 0)["tokens"]
    np.testing.assert_allclose(out["tokens"], expected, atol=1e-5)
    before, after = ({**s.params["text"], **s.state["frozen"]["text"]}["embeddings"] for s in (train_state, started))
    np.testing.assert_array_equal(after["word"][words.vocab_size :], before["word"][words.vocab_size :])
    jax.tree.map(np.testing.assert_array_equal, started.params["encoder"], train_state.params["encoder"])
    assert paired.StudyReader(settings).tokenizer.vocabulary == words.vocabulary, "the words that go with the weights"


def test_a_text_encoder_of_another_size_is_explained(tmp_path):
    words = tokenizer.Tokenizer(tokenizer.train(["Clear lungs. No pleural effusion."] * 2))
    ids = jnp.ones((1, 8), jnp.int32)
    params = noise_of(Bert(words.vocab_size, 32, 2, 2).init, ids, ids > 0)["params"]
    torch_bert.write(tmp_path / "bert", params, words, heads=2)
    settings = runs.config("convirt", text__init_from=str(tmp_path / "bert"))
    with pytest.raises(ValueError, match="does not fit ours in .* parameters: .*Choose the variant of its size"):
        initialise(settings, *fresh(settings))


@pytest.mark.slow
def test_the_lateral_encoder_starts_from_a_swin(tmp_path):
    model = swin.Swin("swin_test")
    known = noise_of(model.init, jnp.zeros((1, 32, 32, 1)))["params"]
    weights, config = torch_swin.to_huggingface(known, variant="swin_test", image_px=32)
    huggingface.write(tmp_path / "swin", weights, config, 0.5, 0.5)
    settings = runs.config("frontal_lateral")
    settings.lateral.update({"init_from": str(tmp_path / "swin"), "train": False})
    train_state, abstract = fresh(settings)
    started = initialise(settings, train_state, abstract)
    assert "lateral" not in started.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), started.state["frozen"]["lateral"], known)


def test_an_encoder_that_does_not_fit_is_explained(tmp_path):
    runs.write(tmp_path / "run", runs.config(model__patch_px=8))
    settings = runs.config(init_from=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"1 do not fit \(patch_embed/kernel: .*expected .*patch_px': 8"):
        initialise(settings, *fresh(settings))


def test_arrays_of_the_same_shapes_with_another_meaning_are_explained(tmp_path):
    """Fixed positions are no arrays, learned ones would be left aside, and heads do not show in shapes."""
    for model, sentence in (
        ({"model__positions": "sincos_rows"}, r"0 do not fit \(positions 'sincos_rows', expected 'sincos'\)"),
        ({"model__positions": "learned"}, r"0 do not fit \(positions 'learned', expected 'sincos'\)"),
    ):
        runs.write(tmp_path / "run", runs.config(**model))
        settings = runs.config(init_from=str(tmp_path / "run"))
        with pytest.raises(ValueError, match=sentence):
            initialise(settings, *fresh(settings))
        shutil.rmtree(tmp_path / "run")


def test_a_defect_that_feeds_pictures_as_they_are_folds_nothing(tmp_path):
    """F-L's D9: weights that expect standardised pictures meet grey values in [0, 1]."""
    model = swin.Swin("swin_test", channels=3)
    known = noise_of(model.init, jnp.zeros((1, 32, 32, 3)))["params"]
    weights, config = torch_swin.to_huggingface(known, variant="swin_test", image_px=32)
    huggingface.write(tmp_path / "swin", weights, config, 0.48, 0.27)
    kernels = []
    for wrong in (True, False):
        settings = runs.config("frontal_lateral", defects__no_standardisation=wrong)
        settings.lateral.update({"init_from": str(tmp_path / "swin"), "train": False})
        settings.lateral.standardise.update({"mean": 0.5, "std": 0.5})
        started = initialise(settings, *fresh(settings))
        kernels.append(started.state["frozen"]["lateral"]["patch_embed"]["kernel"])
    grey = np.asarray(known["patch_embed"]["kernel"]).reshape(16, 3, -1).sum(axis=1)
    np.testing.assert_allclose(kernels[0], grey, atol=1e-6)
    np.testing.assert_allclose(kernels[1], grey * 0.5 / 0.27, atol=1e-6)


def test_nothing_changes_without_init_from():
    settings = runs.config()
    train_state, abstract = fresh(settings)
    assert initialise(settings, train_state, abstract) is train_state


def test_wrong_folder_is_explained(tmp_path):
    (tmp_path / "spcl-abc").mkdir()
    settings = runs.config(init_from=str(tmp_path / "spcl-abd"))
    said = "init_from='.*spcl-abd': there is no such folder; give the work folder of a run.*Did you mean '.*/spcl-abc'"
    with pytest.raises(FileNotFoundError, match=said):
        of_run(settings)
    assert of_run(settings, resumed=True) is settings
    settings.init_from = str(tmp_path / "spcl-abc")
    with pytest.raises(FileNotFoundError, match="init_from='.*spcl-abc': no complete checkpoint in"):
        of_run(settings)
    with pytest.raises(ValueError, match="text.init_from='nowhere': there is no such folder.*or 'reports' for one"):
        of_run(runs.config("convirt", text__init_from="nowhere"))


def test_a_run_that_does_not_fit_is_refused_with_the_keys_to_set(tmp_path):
    runs.write(tmp_path / "run", runs.config(model__patch_px=8))
    config = runs.config(init_from=str(tmp_path / "run"), model__variant="mini")
    said = (
        r"is a run of spcl, but model.variant is 'mini', model.patch_px is 4: give --config.model.variant=test --config"
    )
    with pytest.raises(ValueError, match=said):
        of_run(config)


@pytest.mark.parametrize("name", ["spcl", "finetune"])
def test_smoke_takes_the_model_of_a_real_run(name, tmp_path):
    """Its small encoder would refuse every run but another of :smoke."""
    run = runs.config(words="", model__image_px=32)
    runs.write(tmp_path / "run", run)
    config = of_run(runs.config(name, init_from=str(tmp_path / "run")))
    assert run.model.to_dict().items() <= config.model.to_dict().items() and run.model.variant == "mini"
    assert initial.encoders(config, fresh(config)[1])


def test_positions_are_those_of_the_weights(tmp_path, capsys):
    """A plain Hugging Face ViT has learned ones, which no config of ours but DINO's has by default."""
    learned = runs.write(tmp_path / "run", runs.config(model__positions="learned"))["encoder"]
    weights, settings = torch_vit.to_huggingface(learned, heads=2, patch_px=4, image_px=32)
    huggingface.write(tmp_path / "folder", weights, settings, 0.4978, 0.2449)
    for folder in ("run", "folder"):
        config = of_run(runs.config(init_from=str(tmp_path / folder)))
        assert config.model.positions == "learned" and "model.positions='learned', as there" in capsys.readouterr().out
        assert_starts_from(initialise(config, *fresh(config)), learned)
    table = posemb.sincos_2d((8, 8), 64)
    plain = {key: value for key, value in learned.items() if key != "pos_embed"}
    weights, settings = torch_vit.to_huggingface(plain, heads=2, patch_px=4, image_px=32, position_table=table)
    huggingface.write(tmp_path / "fixed", weights, settings, 0.4978, 0.2449)
    for positions in ("sincos", "learned"):  # learned ones have room for them
        config = runs.config(init_from=str(tmp_path / "fixed"), model__positions=positions)
        assert of_run(config).model.positions == positions


def test_a_head_takes_the_size_of_a_hugging_face_folder(tmp_path):
    size = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    assert torch_vit.size_of({**size, "patch_size": 32, "image_size": 384}) == {
        "variant": "B",
        "patch_px": 32,
        "image_px": 384,
    }
    with pytest.raises(ValueError, match="width 768, 11 layers and 12 heads, as none of ours .*mini: 128, 4, 4"):
        torch_vit.size_of({**size, "num_hidden_layers": 11})
    assert torch_resnet.variant_of({}) == "resnet50"
    with pytest.raises(ValueError, match="is none of resnet_test, resnet18.*depths: ours .*pre-trained"):
        torch_resnet.variant_of({"depths": [9, 9, 9, 9]})
    learned = runs.write(tmp_path / "run", runs.config())["encoder"]
    table = posemb.sincos_2d((8, 8), 64)
    weights, settings = torch_vit.to_huggingface(learned, heads=2, patch_px=4, image_px=32, position_table=table)
    huggingface.write(tmp_path / "folder", weights, settings, 0.4978, 0.2449)
    config = of_run(runs.config("finetune", "", init_from=str(tmp_path / "folder")))
    assert (config.model.variant, config.model.patch_px, config.model.image_px) == ("test", 4, 32)


def test_a_text_encoder_has_the_words_of_the_vocabulary(tmp_path):
    words = tokenizer.train(["Clear lungs. No pleural effusion."] * 2)
    tokenizer.save(words, tmp_path)
    config = runs.config("sista", "", text__tokenizer=str(tmp_path))
    config.text.vocab_size = None
    assert of_run(config).text.vocab_size == len(words) and config.text.vocab_size is None
    config.text.vocab_size = 4000
    assert of_run(config).text.vocab_size == 4000


def test_a_head_takes_the_model_of_its_run(tmp_path):
    """Size, patches, pool and standardisation; what the config gives stays, and a finished config is left alone."""
    run = runs.config(model__pool="mean", model__image_px=48, standardise__mode="per_image", cls_shortcut=False)
    runs.write(tmp_path / "run", run)
    config = runs.config("finetune", "", init_from=str(tmp_path / "run"), model__drop_path=0.3, model__dtype="bfloat16")
    found = of_run(config)
    expected = run.model.to_dict() | {"drop_path": 0.3, "dtype": "bfloat16"}
    assert expected["pool"] == "mean"
    assert found.model.to_dict() == expected and found.standardise.mode == "per_image"
    config.model.image_px = 64
    assert of_run(config).model.image_px == 64 and config.model.variant == "", "a config of its own"
    assert of_run(of_run(config)).model == of_run(config).model and of_run(run) is run


def test_a_head_without_a_run_has_a_model_too():
    for name, words, variant in (("finetune", "", "mini"), ("segment", "resnet", "resnet18")):
        config = of_run(runs.config(name, words))
        assert config.model.variant == variant and methods.make(config).image_px == config.model.image_px


PRETRAINING = [name for name in methods.available() if name not in ("supervised", "segment", "detect")]


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_methods_encoder_can_be_fine_tuned(name, tmp_path, monkeypatch):
    """Each array of the encoder under a head is one of those that the run encodes with."""
    run = runs.config(name)
    monkeypatch.setattr(trained, "settings", lambda folder: (tmp_path, tmp_path, run))
    config = of_run(runs.config("finetune", "", init_from=str(tmp_path)))
    shapes = []
    for settings in (run, config):
        method = methods.make(settings, 10)
        batch = methods.blank_batch(method)
        params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
        places = jax.tree.leaves_with_path(jax.eval_shape(method.encoder, params, state))
        shapes.append({jax.tree_util.keystr(path): leaf.shape for path, leaf in places})
    assert shapes[1] and shapes[1].items() <= shapes[0].items()


def test_learned_positions_are_resized_for_larger_pictures(tmp_path):
    runs.write(tmp_path / "run", runs.config(model__positions="learned"))
    table = trained.load(tmp_path / "run").params["encoder"]["pos_embed"]
    config = of_run(runs.config("finetune", "", init_from=str(tmp_path / "run"), model__image_px=48))
    started = initialise(config, *fresh(config))
    expected = posemb.resize(table, (8, 8), (12, 12))
    np.testing.assert_allclose(started.params["encoder"]["pos_embed"], expected, atol=1e-6)


def test_frozen_encoders_start_from_the_run_and_keep_their_place(tmp_path):
    """A ResNet under a frozen head: arrays in state["frozen"], running statistics where they always are."""
    runs.write(tmp_path / "run", runs.config("simclr", model__variant="resnet_test"))
    learned = trained.load(tmp_path / "run")
    config = of_run(runs.config("finetune", "", init_from=str(tmp_path / "run"), encoder="frozen", labels="Mass"))
    started = initialise(config, *fresh(config))
    assert started.params["encoder"] == {}
    jax.tree.map(np.testing.assert_array_equal, started.state["frozen"]["encoder"], learned.params["encoder"])
    statistics = (tree.state["batch_stats"]["encoder"] for tree in (started, learned))
    jax.tree.map(np.testing.assert_array_equal, *statistics)


@pytest.mark.parametrize("name", methods.available())
def test_what_a_config_gives_is_not_replaced(name, phantom_dir, monkeypatch):
    """What is filled in was open before, whichever keys methods have."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config = runs.config(name, "", data__sets="phantom")
    given, found = (flat(each.to_dict()) for each in (config, of_run(config, builds=False)))
    given = {key: value for key, value in given.items() if value not in (None, "", 0, {}, ())}
    assert {key: found.get(key) for key in given} == given
