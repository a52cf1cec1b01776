"""Judges the answers of a head that was trained with its encoder: fine-tuning, or a linear head under the trainer.

The validation pictures choose nothing here. What was found on them is kept in the details, under "validation". The
trainer keeps the best step by it (`checkpoint.best_metric`), so that the test pictures have no say in that.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

from cxrjax.evals import attention, certainty, labelled
from cxrjax.evals.base import MASKED, Encoder, FeatureTable, Result, Targets, Task, digest
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input.source import Source
from cxrjax.methods.base import Answers


def logits(encoder: Encoder) -> Encoder:
    """The encoder whose pooled features are the c logits of its head, for `features.features`."""

    def encode(images):
        return {"pooled": encoder.encode(images)["logits"]}

    of(encoder)
    return encoder._replace(encode=encode, digest=digest(encoder.digest, "logits"))


def of(encoder: Encoder) -> Answers:
    """What the encoder's head answers for; raises ValueError for an encoder without one."""
    if encoder.answers is None or encoder.answers.kind == "boxes":
        raise ValueError(
            f"{encoder.name!r} has no head that answers for labels; judge a run of the method 'supervised' "
            "(configs/finetune.py), and name no references"
        )
    return encoder.answers


def classify(
    val: FeatureTable,
    test: FeatureTable,
    answers: Answers,
    task: Task,
    label_names: Sequence[str],
    *,
    scaled: bool = False,
    cover: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Judges the head's answers on test, and on val for the choice of a step.

    val, test: tables whose features are logits n c in the order of answers.names. A multilabel or multiclass task that
    names no labels asks for all that both the head and the set know. scaled, cover: see `certainty.KEYS`.
    Raises ValueError for labels that the head does not answer for, a patient in both splits, logits that are not
    numbers, or nothing to judge.
    """
    notes = []
    if task.kind != "binary" and not task.labels:
        common = tuple(name for name in answers.names if name in label_names)
        left = [name for name in (*answers.names, *label_names) if name not in common]
        notes += [f"not judged, since only one of head and set knows them: {', '.join(left)}"] if left else []
        task = task._replace(labels=common)
    tables, keys, more = labelled.usable({"val": val, "test": test}, task, label_names)
    found = {split: probabilities(table.features, answers, task) for split, table in tables.items()}
    details = {"judge": "classify", "validation": validation(task.kind, keys["val"], found["val"])}
    certain = {"scaled": scaled, "cover": cover}
    return labelled.conclude(
        task.kind, tables, keys, found.__getitem__, notes + more, details, resamples, seed, **certain
    )


def probabilities(outputs: np.ndarray, answers: Answers, task: Task) -> np.ndarray:
    """The task's scores n c of a head's logits n k.

    Sigmoids or a softmax, of the labels that the task names. In a binary task: of a softmax the share that the positive
    classes have of the named ones; of sigmoids the probability that some positive label is present, if they were
    independent.
    """
    needed = (*task.positive, *(task.negative if answers.kind == "multiclass" else ()), *task.labels)
    unknown = [name for name in needed if name not in answers.names]
    if unknown or not needed:
        raise ValueError(f"the task asks for labels {unknown or 'of the set'}; the head knows {list(answers.names)}")
    outputs = outputs.astype(np.float64)
    each = scipy.special.softmax(outputs, axis=1) if answers.kind == "multiclass" else scipy.special.expit(outputs)

    def columns(wanted):
        return each[:, [answers.names.index(name) for name in wanted]]

    if task.kind != "binary":
        return columns(task.labels)
    if answers.kind == "multilabel":
        return 1 - np.prod(1 - columns(task.positive), axis=1, keepdims=True)
    positive = columns(task.positive).sum(axis=1, keepdims=True)
    return positive / (columns((*task.positive, *task.negative)).sum(axis=1, keepdims=True) if task.negative else 1)


def validation(kind: str, key: Targets, scores: np.ndarray) -> Mapping[str, float]:
    """Mean log-likelihood of the known answers, and mean AUROC where a label has both values: larger is better."""
    known = key.values != MASKED
    if kind == "multiclass":
        likelihood = scores[key.values == 1]
    else:
        likelihood = np.where(key.values == 1, scores, 1 - scores)[known]
    found = {"log_likelihood": float(np.log(np.maximum(likelihood, 1e-12)).mean())}
    both = ((key.values == 1).any(axis=0) & (key.values == 0).any(axis=0)).any()
    return found | ({"auroc": labelled.mean_auroc(key, scores)} if both else {})


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    given = labelled.arguments(logits(encoder), entry, opened)
    found = classify(**given, answers=of(encoder), **certainty.given(entry))
    return attention.add(encoder, opened.sources["test"], found, opened.pictures_bytes)


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    certainty.check(**certainty.given(entry))
    labelled.check_key(entry, sources)


JUDGE = Judge("classify", judge=_judge, check=_check, splits=("val", "test"), keys=certainty.KEYS, judges_head=True)
