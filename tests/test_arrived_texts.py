"""The space that pictures and texts of an encoder share which others trained, from random weights."""

import json

import jax
import numpy as np
import pytest
import tokenizers

from cxrjax import trained
from cxrjax.evals import encoders, figures, joint, run
from cxrjax.interop import families
from cxrjax.text import tokenizer
from cxrjax.text.folder_tokenizer import FolderTokenizer
from tests.interop.test_families import MEAN, SIZE, STD, written
from tests.interop.test_torch_vit import pictures

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SENTENCES = ["No pleural effusion.", "There is a small left pleural effusion, and a nodule in the right upper lobe."]
TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 200, "vocab_size": 90}
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def clip(folder, eos=1):
    """CLIP and its byte pairs, in the way of its tokenizer.json."""
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=80, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>", unk_token=SPECIAL[1]))
    bpe.normalizer, bpe.pre_tokenizer = tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.Whitespace()
    bpe.train_from_iterator(SENTENCES, trainer)
    found = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in found["merges"]]
    transformers.CLIPTokenizer(vocab=found["vocab"], merges=merges).save_pretrained(folder)
    text = {**TEXT, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": eos, "pad_token_id": 1}
    config = transformers.CLIPConfig(vision_config=SIZE, text_config=text, projection_dim=48)
    return written(folder, transformers.CLIPModel(config), {"size": {"height": 32, "width": 32}})


def siglip(folder):
    """SigLIP and a SentencePiece of unigrams, whose end token is also its padding."""
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram())
    unigram.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Lowercase(), tokenizers.normalizers.Replace(".", "")]
    )
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator(SENTENCES * 4, trainer)
    unigram.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=unigram, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    text = {**TEXT, "max_position_embeddings": 24, "projection_size": 64}
    config = transformers.SiglipConfig(vision_config=SIZE, text_config=text)
    return written(folder, transformers.SiglipModel(config), {"size": {"height": 32, "width": 32}})


def dual(folder):
    """A ViT with its pooler, and a BERT with its own."""
    tokenizer.save(tokenizer.train(SENTENCES, 90), folder)
    transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return _dual(
        folder,
        transformers.ViTConfig(**SIZE | {"intermediate_size": 256}),
        transformers.BertConfig(**TEXT, max_position_embeddings=16),
    )


def byte_pairs(folder):
    """The tokenizer of a RoBERTa of 300 tokens, and its config."""
    pairs, special = tokenizers.ByteLevelBPETokenizer(), ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pairs.train_from_iterator(SENTENCES, vocab_size=300, special_tokens=special, show_progress=False)
    merges = [tuple(pair) for pair in json.loads(pairs.to_str())["model"]["merges"]]
    transformers.RobertaTokenizer(vocab=pairs.get_vocab(), merges=merges).save_pretrained(folder)
    size = {**TEXT, "vocab_size": 300, "max_position_embeddings": 18, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return transformers.RobertaConfig(**size)


def dual_of_others(folder):
    """CLIP's picture tower, which has no pooler, and a RoBERTa, whose padding is 1."""
    return _dual(folder, transformers.CLIPVisionConfig(**SIZE), byte_pairs(folder))


def _dual(folder, vision, text):
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=48)
    return written(folder, transformers.VisionTextDualEncoderModel(config), {"size": {"height": 32, "width": 32}})


FAMILIES = {"clip": clip, "siglip": siglip, "dual": dual, "dual_of_others": dual_of_others}


@pytest.fixture(scope="module", params=FAMILIES)
def arrived(request, tmp_path_factory):
    """The folder of a family, as it was read, and our vectors of pictures and sentences."""
    folder = FAMILIES[request.param](tmp_path_factory.mktemp("hub") / request.param)
    found = trained.load(folder)
    encoder = encoders.from_method(found.method, found.params, found.state, name=request.param)
    images = pictures(32)
    return folder, found, encoder, images, encoder.joint.image(images), joint.texts(encoder, SENTENCES, 8)


def test_vectors_and_logits_are_those_of_transformers(arrived):
    folder, found, _, images, ours, texts = arrived
    model = transformers.AutoModel.from_pretrained(folder).eval()
    read = transformers.AutoTokenizer.from_pretrained(folder)
    is_siglip = model.config.model_type == "siglip"
    cut = {"truncation": True, "max_length": found.config.space.length}
    given = read(SENTENCES, padding="max_length" if is_siglip else True, return_tensors="pt", **cut)
    assert given["attention_mask"].sum(1)[0] < cut["max_length"] == given["attention_mask"].sum(1)[1]  # one is cut
    x = (np.repeat(images, 3, -1) / np.float32(255) - np.array(MEAN)) / np.array(STD)
    with torch.inference_mode():
        options = {} if is_siglip else {"attention_mask": given["attention_mask"]}
        theirs = model(
            input_ids=given["input_ids"], pixel_values=torch.from_numpy(x.transpose(0, 3, 1, 2)).float(), **options
        )
    np.testing.assert_allclose(ours["pooled"], theirs.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(texts, theirs.text_embeds.numpy(), atol=1e-5)
    scale, bias = np.exp(found.params["log_scale"]), found.params.get("bias", 0.0)
    np.testing.assert_allclose(scale * ours["pooled"] @ texts.T + bias, theirs.logits_per_image.numpy(), atol=1e-4)
    assert np.abs(texts[0] - texts[1]).max() > 0.01 and np.abs(np.diff(ours["pooled"], axis=0)).max() > 0.01


def test_patches_are_those_of_the_pool_or_the_last_block_alone(arrived):
    """In the space of the pictures; a text is one word, so that maps of words are those of the whole text."""
    folder, found, encoder, images, ours, texts = arrived
    patches = np.asarray(ours["patches"])
    assert patches.shape == (len(images), 4, 4, texts.shape[1])
    np.testing.assert_allclose(np.linalg.norm(patches, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(joint.texts(encoder, SENTENCES, 8, of_words=True), texts, atol=1e-6)
    reader = FolderTokenizer(folder, found.config.space.vocab_size)
    tokens = encoder.joint.tokens(SENTENCES[0])
    (spelled,) = reader.words(tokens["ids"])
    assert spelled.replace(" ", "").replace("▁", "").lower().startswith("nopleuraleffusion")
    if folder.name == "clip":  # which is compiled again
        maps = figures.look(found.method.joint, found.params, found.state, images[0, ..., 0], SENTENCES[0], reader)
        assert maps.names == (spelled, "sentence")
        np.testing.assert_allclose(maps.cosines[0], patches[0] @ texts[0], atol=1e-5)
    assert encoder.joint.words({"findings": "Clear.", "impression": "Normal.", "text": ""}) == "Normal. Clear."


def test_an_untrained_one_starts_in_the_same_shapes(arrived):
    _, found, *_ = arrived
    params, _ = jax.eval_shape(found.method.init, jax.random.key(0), None)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, found.params)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_tokenizer_that_cannot_be_used_ends_in_a_sentence(name, tmp_path, capsys):
    folder = FAMILIES[name](tmp_path)
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    for damage in (file.read_text()[:200], "[]", "{}", json.dumps({**whole, "model": {"type": "Evil"}}), ""):
        file.write_text(damage)
        with pytest.raises(ValueError, match="tokenizer.json cannot be read .*; download it again"):
            FolderTokenizer(folder, 90)
    with pytest.raises(ValueError, match="tokenizer.json cannot be read"):
        trained.load(folder)
    if name == "siglip":  # the library panics, or gives a number that no vocabulary has
        end, words = {"id": "</s>", "ids": [99], "tokens": ["</s>"]}, "gives tokens up to 99"
        for special, said in (({}, "tokenizer.json cannot be read"), ({"</s>": end}, words)):
            file.write_text(
                json.dumps({**whole, "post_processor": {**whole["post_processor"], "special_tokens": special}})
            )
            with pytest.raises(ValueError, match=said):
                FolderTokenizer(folder, 90).encode("effusion", 8)
    file.write_text(json.dumps({**whole, "post_processor": None}))
    with pytest.raises(ValueError, match="ends a text with no special token"):
        FolderTokenizer(folder, 90)
    file.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="gives tokens up to .*, but the model has word embeddings of 20"):
        FolderTokenizer(folder, 20)
    file.unlink()
    assert trained.load(folder).method.joint is None
    assert "text_model 3" in (said := capsys.readouterr().out) and "where there is a tokenizer.json" in said


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["zeroshot", "sentences", "retrieve", "ground"])
def test_the_judges_of_reports_take_it_as_a_run(arrived, judge, phantom_dir, tmp_path):
    """Beside what it is before training. Grounding moves the boxes as its processor stretches the pictures."""
    _, found, encoder, *_ = arrived
    entry = {"judge": judge, "set": "phantom", "data_dir": str(phantom_dir), "bootstrap": 10, "batch_size": 8}
    if judge in ("zeroshot", "sentences"):
        entry["task"] = {"kind": "multilabel", "labels": ("Effusion",)}
    entry |= {"split": "train"} if judge in ("retrieve", "ground") else {}
    random = encoders.random_init(found.method, jax.random.key(0), None)
    values = [dict(run.evaluate(one, entry, tmp_path / one.name).metrics) for one in (encoder, random)]
    assert values[0].keys() == values[1].keys() and values[0] != values[1]
    assert all(np.isfinite(value.value) for value in values[0].values())


def test_what_is_not_read_is_told_why(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(ValueError, match="of type 'siglip2': it cuts pictures of any aspect .* type 'siglip', which"):
        families.read(tmp_path)
    folder = dual(tmp_path / "dual")
    config = json.loads((folder / "config.json").read_text())
    for part, kind, words in (
        ("vision_config", "mamba", "encoder of pictures of type 'mamba'; expected vit, .*, clip"),
        ("text_config", "mamba", "model of type 'mamba'; expected bert or cxr-bert or roberta"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, part: {**config[part], "model_type": kind}}))
        with pytest.raises(ValueError, match=words):
            trained.load(folder)
