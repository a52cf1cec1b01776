"""What CheXpert-type labels count as when they are read: the published policies for uncertain and unmentioned ones.

Irvin et al. (CheXpert, AAAI 2019) name U-Zeros, U-Ones and U-Ignore. MGCA's mixed one (Wang et al., NeurIPS 2022) is
defined for the five competition labels; here it leaves other uncertain labels unknown. In all of them a label that is
not mentioned counts as absent.
"""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from cxrjax.datasets.schema import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN

_MGCA = {
    **dict.fromkeys(("Atelectasis", "Edema", "Pleural Effusion"), PRESENT),
    **dict.fromkeys(("Cardiomegaly", "Consolidation"), ABSENT),
}
POLICIES = MappingProxyType(
    {"U-Zeros": (ABSENT, {}), "U-Ones": (PRESENT, {}), "U-Ignore": (UNCERTAIN, {}), "MGCA": (UNCERTAIN, _MGCA)}
)
"""Name -> (what an uncertain label becomes, what it becomes for labels of these names instead)."""


def check(policy: str) -> None:
    """Raises ValueError, with those there are, for an unknown policy."""
    if policy not in POLICIES:
        raise ValueError(f"The policy {policy!r} for uncertain labels is not known; choose one of {list(POLICIES)}.")


def apply(labels: np.ndarray, label_names: Sequence[str], policy: str) -> np.ndarray:
    """Returns the labels, int8 … c as the schema has them, as PRESENT, ABSENT or (still unknown) UNCERTAIN.

    label_names: c. Raises ValueError for an unknown policy or another number of names.
    """
    check(policy)
    labels = np.asarray(labels)
    if labels.shape[-1] != len(label_names):
        raise ValueError(f"Labels of shape {labels.shape} do not have the {len(label_names)} names {label_names}.")
    usual, by_name = POLICIES[policy]
    uncertain = np.array([by_name.get(name, usual) for name in label_names], np.int8)
    decided = np.where(labels == UNCERTAIN, uncertain, labels)
    return np.where(decided == NOT_MENTIONED, ABSENT, decided).astype(np.int8)


def answers(codes: np.ndarray, known: Sequence[str], wanted: Sequence[str], policy: str) -> np.ndarray:
    """The wanted labels of one picture: int8 c, 1 present, 0 absent, −1 not known.

    codes: int8 k in the schema's codes, of the k labels `known` to its set. policy: a name of POLICIES, or "" for none.
    """
    if policy:
        codes = apply(codes, known, policy)
    of_label = dict(zip(known, codes, strict=True))
    return np.array([max(of_label.get(name, UNCERTAIN), UNCERTAIN) for name in wanted], np.int8)
