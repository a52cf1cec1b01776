"""F-L: lateral pictures that are lacking, where gradients go, the released defects, sizes,
optimizer groups, and that the lateral picture is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import methods, optim, parallel
from cxrjax.models import frontal_lateral
from cxrjax.text import masking, tokenizer
from tests import runs, two_views
from tests.methods import oracles

PROGRESS = {"duration__total_steps": 10}
KEYS = (jax.random.key(0), None)  # of an init, which reads no batch


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return two_views.vocabulary(tmp_path_factory.mktemp("vocabulary"))


def make(vocabulary, words="smoke", **changes):
    """A method on the studies of two_views, of so few layers as compile soon."""
    defaults = {"text__tokenizer": str(vocabulary), "text__length": 16, "text__vocab_size": 32, "model__patch_px": 8}
    defaults |= {"views__transform": "none", "model__remat": "none"} | PROGRESS
    return methods.make(runs.config("frontal_lateral", words, **defaults | changes))


class Case:
    """A method with noisy parameters; `step` gives its terms, the gradient of each term, and the state."""

    def __init__(self, method, examples):
        self.method, self.batch = method, two_views.batch(method, examples)
        self.params, self.state = map(oracles.noise, jax.eval_shape(method.init, *KEYS))
        # Words that look about evenly all hear the same, and agree on nothing.
        self.params["view_decoder"]["read"]["attention"]["qkv"]["kernel"] *= 5

        def terms(params, batch, key):
            _, aux = method.loss(params, self.state, batch, key, 5)
            return aux.terms, (aux.terms, aux.monitors, aux.state)

        self._step = jax.jit(jax.jacrev(terms, has_aux=True))

    def terms(self):
        """Those of one step; without gradients and monitors they compile sooner."""

        @jax.jit
        def terms(params, batch):
            return self.method.loss(params, self.state, batch, jax.random.key(0), 5)[1].terms

        return terms(self.params, self.batch)

    def step(self, key=0, **changed):
        gradients, (terms, report, state) = self._step(self.params, self.batch | changed, jax.random.key(key))
        terms, report = jax.tree.map(float, (terms, report))
        return terms, jax.device_get(gradients), report, jax.device_get(state)


def examples():
    """Sixteen studies, the first five without a lateral picture, one with a report of one word, one without words."""
    found = list(two_views.studies(16, lacking=0.3))
    for i, text in ((6, "square"), (7, "")):
        found[i] = {**found[i], "report": {"findings": text, "impression": "", "text": ""}}
    return found


@pytest.fixture(scope="module")
def paper(vocabulary):
    return Case(make(vocabulary), examples())


@pytest.fixture(scope="module")
def official(vocabulary):
    return Case(make(vocabulary, "official,smoke"), examples())


def largest(gradient, *parts):
    found = [gradient[part] for part in parts if part in gradient]
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(found))


def finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_short_and_empty_reports_are_finite_and_terms_are_where_they_belong(paper):
    terms, gradients, report, _ = paper.step()
    assert set(terms) == {"itc", "mlm", "fla", "proto"} and finite((terms, gradients, report))
    assert largest(gradients["itc"], "mlm_decoder", "mlm_head", "view_decoder", "prototypes", "selection") == 0
    assert largest(gradients["fla"], "mlm_decoder", "mlm_head", "selection", "projector", "absent", "prototypes") == 0
    assert largest(gradients["mlm"], "view_decoder", "projector", "absent", "prototypes") == 0
    assert largest(gradients["proto"], "mlm_decoder", "view_decoder", "selection", "projector", "absent") == 0
    # Every part of the loss teaches every encoder.
    for name, part in ((name, part) for name in gradients for part in ("encoder", "lateral", "adapter", "text")):
        assert largest(gradients[name], part) > 1e-4, (name, part)
    assert largest(gradients["itc"], "absent") > 1e-4


def test_what_a_lacking_picture_holds_changes_nothing(paper):
    """Noise in its place; and of all pictures, one row's change reaches the loss where the study has it."""
    terms, gradients, _, _ = paper.step()
    lacks = ~paper.batch["has_lateral"]
    assert lacks.sum() == 5
    noisy = paper.batch["image"].copy()
    noisy[lacks, 1] = np.random.default_rng(0).integers(0, 256, noisy[lacks, 1].shape)
    again, same, _, _ = paper.step(image=noisy)
    assert again == pytest.approx(terms, rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), same, gradients)
    noisy[8, 1] = 255 - noisy[8, 1]
    changed, _, _, _ = paper.step(image=noisy)
    assert all(abs(changed[name] - terms[name]) > 1e-5 for name in terms)


def test_no_lateral_picture_at_all(paper):
    """The frontal objective alone, finite, and nothing reaches what reads laterals."""
    terms, gradients, report, _ = paper.step(has_lateral=np.zeros(16, bool))
    assert finite((terms, gradients)) and terms["fla"] == 0 and report["lateral_top1"] == 0
    assert all(largest(gradient, "lateral", "adapter") == 0 for gradient in gradients.values())
    assert all(largest(gradients[name], "encoder", "text") > 1e-4 for name in ("itc", "mlm", "proto"))


def test_alignment_is_that_of_the_studies_with_both_pictures(paper):
    """Which study lacks it is all that matters, and the order of the studies does not."""
    terms, _, _, _ = paper.step()
    there = np.flatnonzero(paper.batch["has_lateral"])
    filled = np.concatenate([there, there[:5]])
    assert len(there) == 11
    lacking = np.arange(16) < 11
    only, _, _, _ = paper.step(**{name: x[filled] for name, x in paper.batch.items()} | {"has_lateral": lacking})
    assert only["fla"] == pytest.approx(terms["fla"], rel=1e-5)
    order = np.random.default_rng(0).permutation(16)
    turned, _, _, _ = paper.step(**{name: x[order] for name, x in paper.batch.items()})
    assert {n: turned[n] for n in ("itc", "fla", "proto")} == pytest.approx(
        {n: terms[n] for n in ("itc", "fla", "proto")}, rel=1e-5
    )


def test_only_the_masked_stream_sees_the_mask(paper):
    """With two streams of text another draw changes the masked loss alone."""
    (one, *_), (other, *_) = paper.step(key=0), paper.step(key=1)
    assert one.pop("mlm") != pytest.approx(other.pop("mlm"), rel=1e-4)
    assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.slow
def test_one_device_is_eight_where_some_have_no_lateral(paper):
    """Two studies a device, of which two devices have none and one has one."""

    def loss(params, batch):
        value, aux = paper.method.loss(params, paper.state, batch, jax.random.key(0), 5)
        return aux.terms | aux.monitors | {"loss": value}

    mesh = parallel.make_mesh({"data": 8})
    params = jax.device_put(paper.params, parallel.replicated(mesh))
    found = jax.jit(loss)(params, parallel.to_global(paper.batch, mesh))
    terms, _, report, _ = paper.step()
    expected = terms | report | {"loss": sum(terms.values())}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_released_defects(official):
    """What the released code teaches nobody."""
    terms, gradients, _, state = official.step()
    assert finite((terms, gradients))
    for name in ("itc", "proto"):
        assert largest(gradients[name], "adapter", "lateral") < 1e-6, "D2: g_L is 1/n whatever the picture"
    assert largest(gradients["mlm"], "adapter") > 1e-6
    assert largest(gradients["proto"], "text", "text_head") == 0, "D7"
    assert "absent" not in official.params, "D4: nothing stands for what counts as there"
    # D4, D8: without laterals every position hears the same; one half of the cross-entropy is ln of all 15 of them.
    other, _, _, _ = official.step(key=1)
    assert other["itc"] != pytest.approx(terms["itc"], rel=1e-6), "D1: one text for all, with words hidden"
    blind, _, _, _ = official.step(has_lateral=np.zeros(16, bool))
    assert blind["fla"] > np.log(15) / 2 - 1e-3
    jax.tree.map(np.testing.assert_array_equal, state, official.state)


def test_the_last_report_of_each_device_selects():
    found = frontal_lateral.of_last(jnp.arange(12.0)[:, None], 3)
    np.testing.assert_array_equal(found[:, 0], [3] * 4 + [7] * 4 + [11] * 4)


def test_views(paper, vocabulary):
    """Frontal then lateral; black and said so where there is none; named words, whole or as pieces."""
    batch = paper.batch
    assert batch["image"].shape == (16, 2, 32, 32, 1) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"][:, 1].any(axis=(1, 2, 3)), batch["has_lateral"])
    assert not batch["entity"].any() and not batch["text_mask"][7].any()
    study = {**examples()[9], "report": {"findings": "The BAR , bar at", "impression": "", "text": ""}}
    found = make(vocabulary, masking__entities="square bar").views(study, np.random.default_rng(0))
    np.testing.assert_array_equal(found["entity"][:7], [0, 0, 1, 0, 1, 0, 0])


def test_a_frozen_swin_needs_weights(vocabulary):
    with pytest.raises(ValueError, match="would keep a random Swin for the whole run: give the folder"):
        make(vocabulary, lateral__train=False)
    frozen = make(vocabulary, lateral__init_from="folder")
    params, state = jax.eval_shape(frozen.init, *KEYS)
    assert "lateral" not in params and "lateral" in state["frozen"]
    params, state = jax.eval_shape(make(vocabulary, lateral__init_from="folder", lateral__train=True).init, *KEYS)
    assert "lateral" in params and "lateral" not in state["frozen"]


def test_released_sizes():

    config = runs.config("frontal_lateral", "official,mimic_cxr", lateral__init_from="folder")
    params, state = jax.eval_shape(methods.make(config).init, *KEYS)
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    assert sum(leaf.size for leaf in jax.tree.leaves(state["frozen"]["lateral"])) == pytest.approx(27.5e6, rel=0.01)
    expected = {"selection": 75_908, "adapter": 984_320, "mlm_decoder": 13_663_232, "view_decoder": 7_358_464}
    expected |= {"mlm_head": 15_138_628, "prototypes": 256_000, "projector": 524_800, "text_head": 768 * 512}
    assert {name: count[name] for name in expected} == expected
    assert sum(count.values()) == pytest.approx(233e6, rel=0.01)


def test_optimizer_groups_and_schedule(paper):
    """Five times the rate for decoder and head of the masked words, twice for biases, which do not decay."""
    config = runs.config("frontal_lateral", "mimic_cxr").optim
    params = jax.tree.map(lambda leaf: np.ones((1,) * leaf.ndim, np.float32), paper.params)
    _, report = optim.make(config, params, 50 * 100, 96, 100)
    rates = [float(report(100 * epoch)["lr"]) * 1e6 for epoch in (5, 6, 7, 47, 48, 49)]
    np.testing.assert_allclose(rates, [10, 9.988, 9.951, 0.109, 0.0487, 0.0122], rtol=5e-3)
    # One step of AdamW at a rate r: gradients of 1 move by r · multiplier, and decay by 0.05 of that.
    adam, _ = optim.make({**config, "schedule": "constant", "warmup_epochs": None}, params, 50 * 100, 96, 100)
    updates = jax.jit(lambda params: adam.update(params, adam.init(params), params)[0])(params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(np.abs(leaf).max()) / 1e-5
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    for path, value in moved.items():
        bias = path.endswith("bias")
        factor = 5 if path.startswith("mlm_head/") else 2 if bias else 5 if path.startswith("mlm_decoder/") else 1
        assert value == pytest.approx(factor * (1 if bias else 1.05), rel=1e-4), path


# The terms that each switch changes.
TOUCHED = {
    "shared_masked_text": {"itc", "mlm", "fla", "proto"},  # key patches are chosen by the report, too
    "lateral_token_softmax": {"itc", "mlm", "fla", "proto"},
    "last_caption_selects": {"mlm"},
    "missing_laterals_stay": {"itc", "mlm", "fla", "proto"},
    "raw_prototypes": {"proto"},
    "one_way_prototypes": {"proto"},
    "padding_counts": {"mlm", "fla"},
    "no_standardisation": {"itc", "mlm", "fla", "proto"},
    "lateral_stochastic_depth": {"itc", "mlm", "fla", "proto"},
    "unequal_scales": {"mlm"},
}
UNTOUCHED = {
    "aggregate_more",  # as many frontal as lateral tokens here
    "piece_masking",  # every word of this vocabulary is one piece
}
# What these do to gradients and values is also in test_released_defects.
RELEASED = {"shared_masked_text", "lateral_token_softmax", "missing_laterals_stay", "one_way_prototypes"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RELEASED else name for name in TOUCHED]
)
def test_a_defect_changes_the_loss_of_its_own(name, vocabulary, paper):
    """On the same parameters, but for the two that need others."""
    expected, _, _, _ = paper.step()
    case = Case(make(vocabulary, **{f"defects__{name}": True}), examples())
    shared = jax.tree.map(np.shape, paper.params) == jax.tree.map(np.shape, case.params)
    case.params = paper.params if shared else case.params
    changed = {term for term, value in case.terms().items() if abs(float(value) - expected[term]) > 1e-5}
    assert changed == TOUCHED[name] if shared else TOUCHED[name] <= changed


def test_more_tokens_are_aggregated_than_there_are(vocabulary):
    assert TOUCHED.keys() | UNTOUCHED == set(runs.config("frontal_lateral").defects)
    paper_reading, more = (
        jax.eval_shape(make(vocabulary, model__patch_px=4, defects__aggregate_more=wrong).init, *KEYS)[0]["selection"]
        for wrong in (False, True)
    )
    drawn = [max(leaf.shape[-1] for leaf in jax.tree.leaves(tree) if leaf.shape) for tree in (paper_reading, more)]
    assert drawn == [44, 71], "of 64 and 16 tokens 64 are kept, which the code draws together into more than they are"


def test_half_precision_is_near(vocabulary, paper):
    half = Case(make(vocabulary, model__dtype="bfloat16", text__dtype="bfloat16"), examples())
    half.params = paper.params
    terms = half.terms()
    assert {value.dtype for value in terms.values()} == {jnp.dtype("float32")}
    assert jax.tree.map(float, terms) == pytest.approx(paper.step()[0], rel=0.1)


def test_unknown_words_are_not_guessed(paper, vocabulary):
    unknown = tokenizer.load(vocabulary).unk_id
    terms, *_ = paper.step(ids=np.where(paper.batch["word_index"] >= 0, unknown, paper.batch["ids"]))
    assert terms["mlm"] == 0 and paper.step()[0]["mlm"] > 1


def test_a_report_without_words_has_a_gradient_under_raw_prototypes(vocabulary):
    """Its vector is 0 where texts are pooled by their mean, and the length of 0 has no slope."""
    case = Case(make(vocabulary, defects__raw_prototypes=True, text__pool="mean"), examples())
    assert not case.batch["text_mask"].any(axis=1).all()
    gradient = jax.jit(jax.grad(lambda p, batch: case.method.loss(p, case.state, batch, jax.random.key(0), 5)[0]))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient(case.params, case.batch)))


def test_named_findings_and_the_words_beside_them_are_hidden_by_their_own_shares(vocabulary, monkeypatch):
    """A finding by `entity`, other words of its report by `beside`, those of reports that name none by `without`."""
    asked = []

    def mask_words(key, ids, word_index, chance, mask_id, whole_words):
        asked.append(chance)
        return ids, ids

    monkeypatch.setattr(masking, "mask_words", mask_words)
    method = make(vocabulary, masking__entity=0.5, masking__beside=0.25, masking__without=0.125)
    params, state = map(oracles.noise, jax.eval_shape(method.init, *KEYS))
    batch = two_views.batch(method, list(two_views.studies(2, lacking=0.0)))
    batch["entity"] = np.zeros_like(batch["entity"])
    batch["entity"][0, 3] = True

    @jax.jit  # what the loss does beside is not computed
    def chances(params, state, batch):
        method.loss(params, state, batch, jax.random.key(0), 0)
        return asked.pop()

    np.testing.assert_array_equal(chances(params, state, batch), np.where(batch["entity"], 0.5, [[0.25], [0.125]]))


@pytest.mark.slow
def test_words_of_the_lateral_picture_are_read_in_it(vocabulary):
    """On unseen studies the hidden height is guessed with the lateral picture, and neither without it nor
    from another study's; three seeds, of which the best without it must be far below the worst with it."""
    heights = {"masking__entities": " ".join(two_views.HEIGHTS)}
    trainer = two_views.Trainer(make(vocabulary, **heights))
    judge = make(vocabulary, **heights, masking__entity=1.0, masking__beside=0.0, masking__without=0.0)
    judge = two_views.Trainer(judge)
    data, test = (two_views.batch(judge.method, two_views.studies(*numbers)) for numbers in ((256,), (64, 32, 9)))
    frontal_only = [batch | {"has_lateral": batch["has_lateral"] & False} for batch in (data, test)]
    found = {"both": [], "frontal": [], "another's": []}
    losses = []
    for seed in range(3):
        params, state = trainer.fit(data, 300, seed)
        terms, report = judge.measure(params, state, test)
        found["both"].append(report["mlm_accuracy"])
        wrong, report = judge.measure(params, state, test | {"image": np.roll(test["image"], 1, axis=0)})
        found["another's"].append(report["mlm_accuracy"])
        losses.append(wrong["mlm"] - terms["mlm"])
        params, state = trainer.fit(frontal_only[0], 300, seed)
        found["frontal"].append(judge.measure(params, state, frontal_only[1])[1]["mlm_accuracy"])
    assert min(found["both"]) > 0.5 and max(found["frontal"] + found["another's"]) < 0.35, found
    assert min(losses) > 0.5
