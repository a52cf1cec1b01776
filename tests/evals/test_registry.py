"""Every judge declares itself alike, and an entry has the common keys and those of its own judge."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from cxrjax.evals import registry, run
from cxrjax.evals.registry import JUDGES
from cxrjax.input import overlap

ENTRY = {"set": "phantom", "task": {"kind": "multilabel"}}


def entry(name, **changes):
    """An entry of a judge, with a task where it takes one."""
    task = {} if JUDGES[name].task_name else ENTRY["task"]
    return {**ENTRY, "task": task, "judge": name, **changes}


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_named_as_its_file_and_shares_no_key_with_the_common_ones(name):
    judge = JUDGES[name]
    assert judge.name == name and (Path(run.__file__).with_name(f"{name}.py")).is_file()
    assert not set(judge.keys) & set(run.COMMON) and set(judge.asks) <= set(judge.keys)
    assert bool(judge.task_name) == bool(judge.instead_of_task)
    assert set(judge.splits) <= {"train", *overlap.HELD_OUT} and ("test" in judge.splits or "split" in judge.keys)
    full = run.complete(entry(name))
    assert set(full) == {*run.COMMON, *judge.keys}
    assert (
        full["task"]["name"] == (judge.task_name or "all") and full["name"] == f"phantom-{full['task']['name']}-{name}"
    )


@pytest.mark.parametrize("name", JUDGES)
def test_a_task_is_refused_by_the_judges_that_take_none_and_needed_by_the_others(name):
    if JUDGES[name].task_name:
        with pytest.raises(
            ValueError, match=f"judge '{name}' takes no task, got .*kind.*; {JUDGES[name].instead_of_task}"
        ):
            run.complete(entry(name, task={"kind": "multilabel"}))
        assert run.complete(entry(name, task={"name": "mine"}))["task"] == {"name": "mine"}
    else:
        with pytest.raises(ValueError, match="'kind' is required"):
            run.complete(entry(name, task={}))


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    for name, key, words in (
        (
            "probe",
            "sett",
            r"key 'sett' is not known\. Did you mean 'set'\? Judge 'probe' knows \['name', 'judge', 'set'",
        ),
        ("knn", "neighbors", "Did you mean 'neighbours'"),
        ("knn", "views", "Did you mean 'projections'"),
        ("classify", "qwxyz", r"key 'qwxyz' is not known\. Judge"),
    ):
        with pytest.raises(ValueError, match=words):
            run.complete(entry(name, **{key: 1}))


def test_a_key_of_another_judge_says_whose_it_is():
    with pytest.raises(
        ValueError, match=r"'solver' belongs to judge 'probe', and this .* 'knn'; its own keys are \['neigh"
    ):
        run.complete(entry("knn", solver="ridge"))
    with pytest.raises(
        ValueError, match=r"'temperature' belongs to judge 'knn' and 'zeroshot',.* its own keys are \['scaled"
    ):
        run.complete(entry("classify", temperature=0.1))


def test_a_temperature_is_the_judges_own():
    assert run.complete(entry("knn", temperature=None))["temperature"] is None
    assert run.complete(entry("zeroshot"))["temperature"] == 0.07
    assert JUDGES["knn"].keys is not JUDGES["zeroshot"].keys


def test_the_probe_alone_logs_under_plain_names():
    assert [name for name, judge in JUDGES.items() if not judge.prefixed] == ["probe"]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("probe", {"solver": "svm"}, "solver 'svm' is not known"),
        ("probe", {"strengths": (0.0, 1.0)}, "above 0"),
        ("probe", {"task": {"kind": "multilabel", "labels": "Hernia"}}, "'Hernia'"),
        ("probe", {"task": {"kind": "multilabel", "labels": "Mass"}, "limit": 1}, "cannot teach"),
        ("knn", {"neighbours": (0,)}, "k >= 1"),
        ("knn", {"temperature": 0.0}, "temperature > 0"),
        ("zeroshot", {"temperature": -1.0}, "temperature > 0"),
        ("zeroshot", {"prompts": {"Mass": "A mass."}}, "expected {'positive'"),
        ("zeroshot", {"task": {"kind": "multilabel", "labels": "Hernia"}}, "'Hernia'"),
        ("classify", {"task": {"kind": "multilabel", "labels": "Hernia"}}, "'Hernia'"),
        ("retrieve", {"at": (0,)}, "k >= 1"),
        ("retrieve", {"classes": "Mass,Hernia"}, "two or more labels of"),
        ("retrieve", {"split": "testing"}, "testing"),
        ("detect", {"require": "boxes or Hernia"}, "no label 'Hernia'"),
        ("segment", {"projections": "PA,SIDE"}, "projections must be"),
    ],
)
def test_what_a_judge_would_refuse_after_training_is_refused_before(phantom_dir, name, changes, words):
    good = entry(name, data_dir=str(phantom_dir))
    assert run.check(good) == run.complete(good)
    with pytest.raises(ValueError, match=words):
        run.check({**good, **changes})


@pytest.mark.parametrize(
    ("name", "several", "single"),
    [
        ("probe", {"strengths": (0.1, 1.0)}, {"strengths": (0.1, 0.1)}),
        ("knn", {"neighbours": (1, 4)}, {"neighbours": (1, 5)}),  # train has four pictures
    ],
)
def test_validation_labels_are_needed_only_where_there_is_a_choice(name, several, single):
    def source(split, *labels):
        names = [f"{split} {number}" for number in range(len(labels))]
        codes = [np.array([label], np.int8) for label in labels]
        table = pandas.DataFrame({"image_id": names, "patient_id": names, "labels": codes})
        return SimpleNamespace(table=table, converted_set=SimpleNamespace(label_names=("Mass",)))

    sources = {"train": source("train", 0, 1, 0, 1), "val": source("val", 0, 0), "test": source("test", 0, 1)}
    check = JUDGES[name].check
    with pytest.raises(ValueError, match="has both values in the 2 validation pictures"):
        check(run.complete(entry(name, **several)), sources)
    check(run.complete(entry(name, **single)), sources)
    with pytest.raises(ValueError, match="both values in the test pictures"):
        check(run.complete(entry(name, **single)), {**sources, "test": source("test", 1, 1)})


def test_a_judge_of_ones_own_is_a_file(tmp_path):
    """That a whole one runs, docs/add/judge.md shows."""
    own = tmp_path / "own.py"
    own.write_text(
        "from cxrjax.evals.judge import Judge\n"
        "JUDGE = Judge('mine', judge=None, splits=('test',), keys={'own': 1}, task_name='x', instead_of_task='y')\n"
    )
    full = run.complete({"judge": str(own), "set": "s"})
    assert full["own"] == 1 and full["name"] == "s-x-mine" and run.logged(full, "m") == "eval/s/x/mine_m"
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="empty.py has no JUDGE"):
        registry.find(str(tmp_path / "empty.py"))
    with pytest.raises(ValueError, match="judge is '.*gone.py', and there is no such file"):
        registry.find(str(tmp_path / "gone.py"))
    with pytest.raises(ValueError, match="judge 'prob' is not known; choose one of .*'probe'.* or give the file"):
        registry.find("prob")
