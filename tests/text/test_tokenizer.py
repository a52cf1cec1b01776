"""Tokens: against Hugging Face's BertTokenizer, by hand, and what a broken vocabulary says."""

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from cxrjax.text import tokenizer

PIECES = (*tokenizer.SPECIAL, "pneu", "##mo", "##thorax", "no", "x", "-", "ray", ".", "clear")
REPORTS = [
    "The lungs are clear. No pneumothorax, pleural effusion, or focal consolidation.",
    "1. Bibasilar atelectasis; T12 compression fracture (unchanged).\n2. A 2.5 cm nodule/mass, ?malignant.",
    "Ergüsse beidseits ≈ 25°C, naïve façade – “quoted”\u00a0text\ttab\u200b, 肺炎, \ufffd, a\x00b",
    "Normal chest x-XXXX. ___ year old [UNK] with [MASK] and [SEP].",
    f"{'pneumonoultramicroscopic' * 5} e.g. cardiomediastinal,hilar##contours UNREMARKABLE!",
    "Endotracheal tube tip terminates 4.5 cm above the carina. " * 12,
    "",
    " \n ",
]


def _real(*parts):
    if "CXRJAX_REAL_DATA" not in os.environ:
        pytest.skip("CXRJAX_REAL_DATA names no folder of real reports")
    return Path(os.environ["CXRJAX_REAL_DATA"], *parts)


@functools.cache
def _trained(lowercase=True):
    return tokenizer.train(REPORTS * 2, size=400, lowercase=lowercase)


def _same_as_hugging_face(file, ours, texts, length):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(str(file), do_lower_case=ours.lowercase)
    assert ours.vocab_size == theirs.vocab_size
    for text in texts:
        tokens = ours.encode(text, length)
        expected = theirs(text, max_length=length, padding="max_length", truncation=True)
        np.testing.assert_array_equal(tokens.ids, expected["input_ids"])
        np.testing.assert_array_equal(tokens.mask, expected["attention_mask"])
        if "[" not in text:  # there a special token of the text is a word of ours
            words = [-1 if number is None else number for number in expected.word_ids()]
            np.testing.assert_array_equal(tokens.word_index, words)


@pytest.mark.parametrize("length", [3, 16, 112])
@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_of_hugging_face_with_a_trained_vocabulary(lowercase, length, tmp_path):
    file = tokenizer.save(_trained(lowercase), tmp_path, lowercase)
    _same_as_hugging_face(file, tokenizer.load(tmp_path), REPORTS, length)


def test_a_saved_vocabulary_loads_in_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(_trained(False), tmp_path, lowercase=False)
    ours, theirs = tokenizer.load(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    expected = theirs(REPORTS[0], max_length=112, padding="max_length")["input_ids"]
    assert not ours.lowercase and ours.encode(REPORTS[0], 112).ids.tolist() == expected


@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_of_hugging_face_on_real_reports(lowercase):
    file = _real("vocab", "bert_base_uncased_vocab.txt")
    frame = pandas.read_csv(_real("iu_reports", "reports.csv"), dtype=str, keep_default_na=False)
    texts = (frame.findings + " " + frame.impression).tolist()[:: 10 if lowercase else 100]
    ours = tokenizer.load(file, lowercase)
    assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id) == (0, 100, 101, 102, 103)
    _same_as_hugging_face(file, ours, texts + REPORTS, 112)


def test_tokens_by_hand():
    ours = tokenizer.Tokenizer(PIECES)
    tokens = ours.encode("No Pneumothorax. X-ray unclear", 12)
    assert tokens.ids.tolist() == [2, 8, 5, 6, 7, 12, 9, 10, 11, 1, 3, 0]
    assert tokens.mask.tolist() == [True] * 11 + [False]
    assert tokens.word_index.tolist() == [-1, 0, 1, 1, 1, 2, 3, 4, 5, 6, -1, -1]
    assert (tokens.ids.dtype, tokens.mask.dtype, tokens.word_index.dtype) == (np.int32, bool, np.int32)
    assert ours.words(tokens.ids) == ["no", "pneumothorax", ".", "x", "-", "ray", "[UNK]"]
    assert ours.decode(tokens.ids) == "no pneumothorax . x - ray [UNK]"
    assert ours.vocab_size == len(PIECES)


def test_special_tokens_in_a_text_are_words_of_one_piece():
    ours = tokenizer.Tokenizer(PIECES)
    tokens = ours.encode("no [UNK] [MASK] clear", 8)
    assert tokens.ids.tolist() == [2, 8, 1, 4, 13, 3, 0, 0]
    assert tokens.word_index.tolist() == [-1, 0, 1, 2, 3, -1, -1, -1]


def test_words_of_any_ids():
    ours = tokenizer.Tokenizer(PIECES)
    assert ours.words([]) == []
    assert ours.words([6, 7, 2, 7, 8]) == ["##mothorax", "##thorax", "no"]
    assert ours.words(np.array([2, 5, 4, 7, 3, 0])) == ["pneu", "[MASK]thorax"]


def test_the_words_are_those_numbered():
    ours = tokenizer.Tokenizer(_trained())
    for text in REPORTS:
        ids, mask, word_index = ours.encode(text, 64)
        words = ours.words(ids)
        pieces = [""] * len(words)
        for token, number in zip(ids, word_index, strict=True):
            if number >= 0:
                pieces[number] += ours.vocabulary[token].removeprefix("##")
        assert pieces == [word.removeprefix("##") for word in words]
        assert len(words) == word_index.max() + 1


@pytest.mark.parametrize("length", [3, 112])
def test_truncation_still_ends_in_sep(length):
    ours = tokenizer.Tokenizer(_trained())
    tokens = ours.encode(" ".join(REPORTS[:3]) * 3, length)
    assert tokens.ids[0] == ours.cls_id and tokens.ids[-1] == ours.sep_id
    assert tokens.mask.all() and (tokens.word_index[1:-1] >= 0).all() and tokens.word_index[-1] == -1
    with pytest.raises(ValueError, match="A length of 2 leaves no room"):
        ours.encode("clear", 2)


def test_pickled_it_gives_the_same():
    ours = tokenizer.Tokenizer(_trained(False), lowercase=False)
    again = pickle.loads(pickle.dumps(ours))
    assert (again.vocabulary, again.lowercase) == (ours.vocabulary, False)
    for text in REPORTS:
        np.testing.assert_array_equal(np.stack(again.encode(text, 64)), np.stack(ours.encode(text, 64)))


def test_training_gives_the_same_vocabulary_in_another_process():
    # The trainer's hash tables differ between processes.
    program = "import sys, ast; from cxrjax.text import tokenizer; texts = ast.literal_eval(sys.stdin.read())"
    program += "; print(ascii(tokenizer.train(texts * 2, size=400)))"
    command, folder = [sys.executable, "-c", program], Path(__file__).parents[2]
    done = subprocess.run(command, input=ascii(REPORTS), capture_output=True, text=True, check=True, cwd=folder)
    assert done.stdout.strip() == ascii(_trained())


def test_a_trained_vocabulary():
    vocabulary = tokenizer.train(iter(["pleural effusion, no pleural edema"] * 3 + ["Édema"]), size=60)
    assert vocabulary[:5] == tokenizer.SPECIAL
    assert len(set(vocabulary)) == len(vocabulary) <= 60
    assert {"pleural", "effusion", "edema", "no", ",", "e", "##e"} <= set(vocabulary)
    cased = tokenizer.train(["Édema"], size=60, lowercase=False)
    assert "É" in cased and "É" not in vocabulary
    ours = tokenizer.Tokenizer(vocabulary)
    assert ours.words(ours.encode("no pleural edema, pure", 32).ids) == ["no", "pleural", "edema", ",", "pure"]


def test_a_rare_word_is_left_in_pieces():
    texts = ["clear lungs"] * 3 + ["pneumopericardium"]
    rare, often = (tokenizer.train(texts, 400, min_frequency) for min_frequency in (1, 3))
    assert "pneumopericardium" in rare and "pneumopericardium" not in often and "clear" in often


@pytest.mark.parametrize(
    ("texts", "size", "said"),
    [([], 100, "0 were given"), ([" "], 100, "1 were given"), (["abc"], 10, "size of 10 .* 11 pieces")],
)
def test_what_cannot_be_trained(texts, size, said):
    with pytest.raises(ValueError, match=said):
        tokenizer.train(texts, size)


def test_saving_and_loading(tmp_path):
    file = tokenizer.save(PIECES, tmp_path / "new" / "folder")
    assert file == tmp_path / "new" / "folder" / "vocab.txt" and file.read_text() == "\n".join(PIECES) + "\n"
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["tokenizer_config.json", "vocab.txt"]
    assert tokenizer.load(file).vocabulary == tokenizer.load(file.parent).vocabulary == PIECES
    with pytest.raises(ValueError, match="lacks"):
        tokenizer.save(PIECES[1:], file.parent)
    assert tokenizer.load(file).vocabulary == PIECES


def test_a_disk_that_is_full_leaves_the_old_vocabulary(tmp_path, monkeypatch):
    tokenizer.save(PIECES, tmp_path)
    write_text = Path.write_text

    def half(path, text, *options):
        write_text(path, text[: len(text) // 2], *options)
        raise OSError("No space left on device")

    with monkeypatch.context() as full, pytest.raises(OSError):
        full.setattr(Path, "write_text", half)
        tokenizer.save((*PIECES, "more"), tmp_path)
    assert tokenizer.load(tmp_path).vocabulary == PIECES


@pytest.mark.parametrize(
    ("settings", "given", "lowercase"),
    [
        (None, None, True),
        ("{}", None, True),
        ('{"do_lower_case": true}', None, True),
        ('{"do_lower_case": false}', None, False),
        ('{"do_lower_case": false}', True, True),
        ("{", False, False),
    ],
)
def test_who_decides_on_lower_case(settings, given, lowercase, tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(PIECES).encode())
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(settings)
    ours = tokenizer.load(tmp_path, given)
    assert ours.lowercase == lowercase and ours.vocabulary == PIECES
    assert ours.words(ours.encode("No", 4).ids) == (["no"] if lowercase else ["[UNK]"])


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (PIECES[:3] + PIECES[5:], r"vocab\.txt cannot be used: The vocabulary lacks \[SEP\], \[MASK\]"),
        (PIECES[1:] + PIECES[:1], r"The id of \[PAD\] is 13"),
        ((*PIECES, "no", "ray"), r"more than once \(2, such as 'no'\)"),
        ((*PIECES, "", "heart"), "Line 15 is blank"),
        (("\udce9",), "cannot be used: .*utf-8"),
    ],
)
def test_broken_vocabularies(pieces, said, tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\n".join(pieces).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=said):
        tokenizer.load(tmp_path)


def test_missing_vocabularies(tmp_path):
    with pytest.raises(ValueError, match=r"There is no vocabulary .*vocab\.txt; give"):
        tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=r"There is no vocabulary .*words\.txt; give"):
        tokenizer.load(tmp_path / "words.txt")
    tokenizer.save(PIECES, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is no JSON object .*`lowercase`"):
        tokenizer.load(tmp_path)
