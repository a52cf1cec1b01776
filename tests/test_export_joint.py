"""The space of pictures and reports leaves as a torch file that gives our vectors."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cxrjax import export, trained
from cxrjax.interop import joint
from cxrjax.text import tokenizer
from tests import runs

SENTENCES = ["Small nodule in the left upper lobe.", "No effusion."]
VOCABULARY = tokenizer.train([*SENTENCES, "The heart is large. Clear lungs, unremarkable."], 90)


def exported(folder, settings):
    runs.write(folder / "run", settings)
    tokenizer.save(VOCABULARY, folder / "run")
    export.export(folder / "run", folder / "model")
    spec = importlib.util.spec_from_file_location("modeling", folder / "model" / "modeling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Joint(folder / "model").eval()


@pytest.mark.parametrize(
    "settings",
    [
        lambda: runs.config("sista"),
        pytest.param(lambda: runs.config("convirt", "smoke,clip"), marks=pytest.mark.slow),
        pytest.param(lambda: runs.config("gloria"), marks=pytest.mark.slow),
        pytest.param(lambda: runs.config("mgca"), marks=pytest.mark.slow),
        pytest.param(lambda: runs.config("frontal_lateral"), marks=pytest.mark.slow),
        pytest.param(lambda: runs.config("gloria", model__variant="resnet_test"), marks=pytest.mark.slow),
    ],
)
def test_words_are_seen_in_torch_where_they_are_seen_here(settings, tmp_path):
    """From the sentence on: torch's tokens, words, vectors and maps of words, by the file that lies in the folder."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    theirs = exported(tmp_path, settings())
    run = trained.load(tmp_path / "run", dtype="float32")
    images = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    tokens = [run.method.joint.tokens(sentence) for sentence in SENTENCES]
    read = {name: np.stack([one[name] for one in tokens]) for name in ("ids", "text_mask", "word_index")}
    seen = jax.jit(run.method.joint.image)(run.params, run.state, images)
    told = jax.jit(run.method.joint.text)(run.params, run.state, *read.values())
    x = torch.from_numpy(np.repeat((images / 255 - 0.4978) / 0.2449, 3, axis=-1).transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        u, patches = theirs.image(pixel_values=x)
        w, words, mask = theirs.text(**theirs.tokenize(SENTENCES))
    np.testing.assert_allclose(seen["pooled"] @ told["pooled"].T, u @ w.T, atol=1e-4)
    ours = np.einsum("bwd,bpqd->bwpq", told["words"], seen["patches"])[:, : words.shape[1]]
    np.testing.assert_allclose(ours, torch.einsum("bwd,bpqd->bwpq", words, patches), atol=1e-4)
    np.testing.assert_array_equal(told["word_mask"][:, : mask.shape[1]], mask)
    assert "from modeling import Joint" in (tmp_path / "model" / "README.md").read_text()


def test_code_is_short_and_loads_no_pickle():
    code = Path(joint.__file__).with_name("joint_modeling.py").read_text()
    assert len(code.splitlines()) <= 90
    assert not re.search(r"torch\.load|pickle|cxrjax", code)


def test_folding_a_batchnorm_is_the_batchnorm():
    """By hand: (2·3 + 1 − 5) / √(4 − 1e-5 + 1e-5) · 10 + 7."""
    params = {"fc1": {"kernel": np.array([[2.0]]), "bias": np.array([1.0])}, "norm1": {"scale": [10.0], "bias": [7.0]}}
    found = joint.chain(params, {"norm1": {"mean": [5.0], "var": [4.0 - 1e-5]}})
    assert found["0.weight"][0, 0] * 3 + found["0.bias"][0] == 17.0
    with pytest.raises(ValueError, match="a LayerNorm, which cannot be folded"):
        joint.chain(params, {})


def test_scales_are_those_of_the_losses():
    clip, sigmoid = runs.config("convirt", loss__form="info_nce"), runs.config("convirt", loss__form="sigmoid")
    assert joint.scale(clip, {"log_scale": 9.0}) == pytest.approx(100.0)
    assert joint.scale(sigmoid, {"log_scale": 9.0}) == pytest.approx(np.exp(9.0))
    assert joint.scale(clip, {}) == pytest.approx(1 / clip.loss.temperature)
    assert joint.scale(runs.config("sista"), {"log_temperature": -9.0}) == pytest.approx(100.0)
    assert joint.scale(runs.config("gloria"), {}) == runs.config("gloria").loss.pair_scale
