"""Which words of a report name a finding or where it is, for masking that prefers them."""

from collections.abc import Collection

import numpy as np

from cxrjax.text.tokenizer import Tokenizer

# Our choice of what the released list of F-L (Qiao, Gong et al., IEEE TMI 2026) is meant for; plurals are words too.
ENTITIES = """
abscess airspace aorta aortic apical atelectasis basilar calcification calcified cardiac cardiomegaly catheter chf
collapse congestion consolidation copd costophrenic deformity diaphragm dilation edema effusion effusions embolism
emphysema fibrosis fluid fracture fractures granuloma heart hemidiaphragm hernia hilar hyperinflation infiltrate
infiltrates interstitial lesion mass masses mediastinal mediastinum nodular nodule nodules opacities opacity perihilar
pleural pneumonia pneumothorax sarcoidosis scarring silhouette thickening tuberculosis vascular vasculature
"""


def named(
    tokenizer: Tokenizer, ids: np.ndarray, word_index: np.ndarray, entities: Collection[str], whole_words: bool = True
) -> np.ndarray:
    """bool l: the pieces of the words that are among the entities, whatever their case.

    ids, word_index: l, as the tokenizer gives them.
    whole_words: False takes single pieces for words, as code without words does; then most words of several pieces are
    not found.
    """
    if not whole_words:
        return np.array([tokenizer.vocabulary[number] in entities for number in ids])
    listed = [word.lower() in entities for word in tokenizer.words(ids)]
    return np.array([*listed, False])[word_index]
