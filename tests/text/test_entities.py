"""Named words: whole ones, whatever their case and pieces, or single pieces as released code takes them."""

import numpy as np

from cxrjax.text import entities
from cxrjax.text.tokenizer import SPECIAL, Tokenizer

TOKENIZER = Tokenizer([*SPECIAL, "no", "effusion", "nod", "##ule", "##s", "mass", "."])
NAMES = {"effusion", "nodule", "mass"}


def named(text, **options):
    ids, _, word_index = TOKENIZER.encode(text, 10)
    return entities.named(TOKENIZER, ids, word_index, NAMES, **options)


def test_words_of_several_pieces_are_named_whole():
    """[CLS] no nod ##ule mass ##s EFFUSION . [SEP]: "masses" of two pieces is another word than "mass"."""
    found = named("No nodule masss EFFUSION .")
    np.testing.assert_array_equal(found, np.isin(np.arange(10), (2, 3, 6)))
    pieces = named("No nodule masss EFFUSION .", whole_words=False)
    np.testing.assert_array_equal(pieces, np.isin(np.arange(10), (4, 6)))
    assert not named("no .").any()
    cased = Tokenizer([*SPECIAL, "Mass", "mass"], lowercase=False)
    ids, _, word_index = cased.encode("Mass mass", 4)
    np.testing.assert_array_equal(entities.named(cased, ids, word_index, NAMES), [False, True, True, False])


def test_the_list_is_of_lower_case_words_without_repetition():
    words = entities.ENTITIES.split()
    assert len(words) == len(set(words)) and all(word.isalpha() and word.islower() for word in words)
