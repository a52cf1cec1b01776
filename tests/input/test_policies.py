"""Policies for uncertain labels: the published tables, and what a task makes of them."""

import numpy as np
import pytest

from cxrjax.evals.base import make_task, targets
from cxrjax.input import policies

NAMES = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion", "Fracture")
CODES = np.array([[1, 0, -1, -2, -1, -1], [-1, -1, 0, -1, 1, -2]], np.int8)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("U-Zeros", [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]]),
        ("U-Ones", [[1, 0, 1, 0, 1, 1], [1, 1, 0, 1, 1, 0]]),
        ("U-Ignore", [[1, 0, -1, 0, -1, -1], [-1, -1, 0, -1, 1, 0]]),
        ("MGCA", [[1, 0, 0, 0, 1, -1], [0, 1, 0, 1, 1, 0]]),
    ],
)
def test_a_policy_decides_by_label_name(policy, expected):
    decided = policies.apply(CODES, NAMES, policy)
    assert decided.tolist() == expected and decided.dtype == np.int8
    turned = policies.apply(CODES[:, ::-1], NAMES[::-1], policy)  # MIMIC-CXR has the same labels in another order
    assert turned[:, ::-1].tolist() == expected
    assert policies.apply(CODES[0], NAMES, policy).tolist() == expected[0]
    assert (CODES == [[1, 0, -1, -2, -1, -1], [-1, -1, 0, -1, 1, -2]]).all()


def test_a_task_with_a_policy_judges_what_it_decides():
    task = make_task({"kind": "multilabel", "policy": "MGCA", "labels": "Edema, Consolidation, Fracture"})
    assert targets(task, CODES, NAMES).values.tolist() == [[0, 0, -1], [1, 0, 0]]
    key = targets(make_task({"kind": "binary", "positive": "Edema", "policy": "U-Ignore"}), CODES, NAMES)
    assert key.keep.tolist() == [True, False]
    plain = targets(make_task({"kind": "multilabel", "labels": "Atelectasis"}), CODES, NAMES)
    assert plain.values.tolist() == [[-1], [-1]]


@pytest.mark.parametrize("field", ["uncertain", "not_mentioned"])
def test_a_policy_and_its_parts_are_not_mixed(field):
    with pytest.raises(ValueError, match="policy='U-Ones'.*give one or the other"):
        make_task({"kind": "multilabel", "policy": "U-Ones", field: "ignore"})


def test_unknown_policies_and_other_label_axes_are_refused():
    with pytest.raises(ValueError, match="'u_ones'.*choose one of .'U-Zeros', 'U-Ones', 'U-Ignore', 'MGCA'"):
        make_task({"kind": "multilabel", "policy": "u_ones"})
    with pytest.raises(ValueError, match=r"\(2, 6\) do not have the 5 names"):
        policies.apply(CODES, NAMES[:5], "U-Ones")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [0, 1, -1, -1, -1]),
        ("U-Ignore", [0, 1, -1, 0, -1]),
        ("U-Zeros", [0, 1, 0, 0, -1]),
        ("U-Ones", [0, 1, 1, 0, -1]),
    ],
)
def test_answers_by_policy(policy, expected):
    """Absent, present, uncertain, not mentioned, and a label that the set does not have, which no policy decides."""
    codes, known = np.asarray([1, -1, 0, -2], np.int8), ("Mass", "Edema", "Effusion", "Nodule")
    found = policies.answers(codes, known, ("Effusion", "Mass", "Edema", "Nodule", "Tuberculosis"), policy)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, expected)
