"""What an image–text method sees of a study: which picture, which words, and what an empty report becomes."""

import pickle

import numpy as np
import pytest

from cxrjax import train
from cxrjax.input import converted_sets, paired, source
from cxrjax.input.studies import studies
from cxrjax.text import tokenizer
from tests import runs


@pytest.fixture
def config(phantom_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config = runs.config("convirt", "smoke")
    config.data.sets = "phantom"
    config.views.transform = "none"
    return config


@pytest.fixture
def study(phantom_dir):
    return studies(source.select(converted_sets.open_set("phantom", phantom_dir), "train"), require_report=True)[0]


@pytest.fixture
def frontal_studies(phantom_dir):
    return source.select(converted_sets.open_set("phantom", phantom_dir), "train")


def report(findings="", impression="", text=""):
    return {"findings": findings, "impression": impression, "text": text}


def test_a_study_becomes_a_frontal_picture_and_its_words(config, study):
    see = pickle.loads(pickle.dumps(paired.StudyReader(config)))
    seen = see(study, np.random.default_rng(0))
    assert seen["image"].shape == (1, 32, 32, 1) and seen["image"].dtype == np.uint8
    words = tokenizer.load(converted_sets.open_set("phantom").directory)
    said = " ".join((study["report"]["impression"] + " " + study["report"]["findings"]).split())
    np.testing.assert_array_equal(seen["ids"], words.encode(said, 48).ids)
    np.testing.assert_array_equal(seen["text_mask"], seen["ids"] > 0)
    again = see(study, np.random.default_rng(5))
    assert again["report"] == seen["report"]


def test_sections_are_read_in_the_order_that_is_asked_for(config):
    both = report("Clear lungs. Heart size is 2.5 cm.", "No change.", "unused")
    assert paired.StudyReader(config).text(both) == "No change. Clear lungs. Heart size is 2.5 cm."
    config.text.sections = "findings"
    assert paired.StudyReader(config).text(both) == "Clear lungs. Heart size is 2.5 cm."
    assert (
        paired.StudyReader(config).text(report(impression="No change.", text="CHEST\n\nAll is well here."))
        != "No change."
    )
    config.text.cleaning = "mgca"
    config.text.sections = "impression,findings"
    assert paired.StudyReader(config).text(both) == "no change clear lungs heart size is 5 cm"


def test_a_report_without_sections_is_read_by_its_last_paragraph(config):
    plain = report(text="EXAMINATION: Chest.\n\nPortable film.\n\nThe lungs are clear.")
    assert "The lungs are clear." in paired.StudyReader(config).text(plain)
    assert paired.StudyReader(config).text(report()) == ""


def test_an_empty_report_is_padding_and_needs_no_vocabulary(config):
    config.data.sets = "a_set_that_is_not_here"
    tokens = paired.StudyReader(config).tokens("")
    assert not tokens["text_mask"].any() and not tokens["ids"].any() and (tokens["word_index"] == -1).all()


def test_one_sentence_is_one_of_the_report(config, study):
    config.text.one_sentence = True
    see = paired.StudyReader(config)
    words = see.tokenizer
    said = {
        words.decode(see(study, np.random.default_rng(seed))["ids"]) for seed in range(20)
    }  # of many draws, several differ
    whole = words.decode(words.encode(see.text(study["report"]), 200).ids)
    assert len(said) > 1 and all(sentence in whole for sentence in said)


def test_one_sentence_of_cleaned_reports_is_one_as_well(config, study):
    """MGCA's cleaning takes the full stops away, so sentences are told apart before."""
    config.text.update({"one_sentence": True, "cleaning": "mgca"})
    see = paired.StudyReader(config)
    said = report("Clear lungs. Heart size is 2.5 cm. Pleural spaces are normal.", "No change.")
    drawn = {see({**study, "report": said}, np.random.default_rng(seed))["report"].item() for seed in range(40)}
    assert len(drawn) == 5, "the released split leaves a sentence '5 cm'"


def test_short_reports_are_left_out_and_prompts_are_cleaned_as_reports_are(config, frontal_studies):
    config.text.cleaning = "mgca"
    see = paired.StudyReader(config)
    assert see.text(report("Clear lungs.")) == see.text(report("Normal.")) == "" != see.text(report("Lungs are clear."))
    for one, other in (("There is NO effusion.", "there is no effusion"), ("Edema", "edema")):
        for name, value in see.tokens(one).items():
            np.testing.assert_array_equal(value, see.tokens(other)[name])
    kept = studies(frontal_studies, require_report=True, read=lambda found: "" if "left" in str(found) else "read")
    lacking = kept.left_out["without a report"]
    assert 0 < lacking < len(studies(frontal_studies)) and len(kept) + lacking == len(studies(frontal_studies))
    assert not any("left" in str(kept[number]["report"]) for number in range(len(kept)))


def test_reports_that_differ_in_case_only_are_one_report(config, study):
    """They are the same to whoever compares reports; they are still read as they are written."""
    reader = paired.StudyReader(config)
    written = ("No pleural effusion.", "NO PLEURAL EFFUSION.", "Pleural effusion.")
    seen = [reader({**study, "report": report(findings)}, np.random.default_rng(0)) for findings in written]
    assert seen[0]["report"] == seen[1]["report"] != seen[2]["report"]
    np.testing.assert_array_equal(seen[0]["ids"], seen[1]["ids"])
    assert reader.text(report(written[0])) != reader.text(report(written[1]))


def test_wrong_settings_get_a_sentence(config, study):
    config.text.sections = "findings,conclusion"
    with pytest.raises(ValueError, match="text.sections are of findings, impression; got 'findings,conclusion'"):
        paired.StudyReader(config)
    config.text.update({"sections": "findings", "cleaning": "lower"})
    with pytest.raises(ValueError, match="text.cleaning must be one of none, mgca; got 'lower'"):
        paired.StudyReader(config)
    config.text.update({"cleaning": "none", "vocab_size": 20})
    with pytest.raises(ValueError, match="but text.vocab_size is 20: set it to"):
        paired.StudyReader(config)(study, np.random.default_rng(0))
    with pytest.raises(ValueError, match="has no frontal picture; set data.require=frontal,report"):
        paired.StudyReader(config)({**study, "frontals": []}, np.random.default_rng(0))


@pytest.mark.parametrize("changes", [{"unit": "patient"}, {"require": "report,sagittal"}, {"unit": "picture"}])
def test_unknown_units_and_parts_are_refused(config, changes):
    config.data.update(changes)
    with pytest.raises(ValueError, match="a study can be required to have"):
        train.build(config)


def test_a_run_keeps_its_vocabulary_and_refuses_another(config, tmp_path):
    paired.keep_vocabulary(config, tmp_path)
    mine = tokenizer.load(converted_sets.open_set("phantom").directory)
    assert tokenizer.load(tmp_path).vocabulary == mine.vocabulary
    paired.keep_vocabulary(config, tmp_path)
    config.text.tokenizer = str(tokenizer.save((*mine.vocabulary, "extra"), tmp_path / "other"))
    with pytest.raises(ValueError, match="holds a run with another vocabulary"):
        paired.keep_vocabulary(config, tmp_path)
