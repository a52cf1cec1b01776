"""Studies of the phantom: the right pictures together, missing projections marked, and training batches of them."""

import pickle

import cv2
import numpy as np
import pytest

from cxrjax.datasets import schema, writer
from cxrjax.input import converted_sets, crops, pipeline, source
from cxrjax.input.studies import pick, studies

FIT = crops.transform("none", 32)


@pytest.fixture(scope="module")
def frontal_lateral(phantom_dir):
    """All pictures of the phantom's train split."""
    return source.select(converted_sets.open_set("phantom", phantom_dir), "train")


@pytest.fixture(scope="module")
def some_missing(phantom_dir, frontal_lateral):
    """The same without every third lateral and without the frontal of the second study."""
    table = frontal_lateral.table
    laterals = sorted(table["image_id"][table["view"] == "LATERAL"])[::3]
    frontal = sorted(table["image_id"][table["view"] != "LATERAL"])[1]
    return source.select(frontal_lateral.converted_set, "train", exclude_image_ids=[*laterals, frontal])


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A study of five pictures in every projection, and one in an unknown one with the study id of another patient."""
    pictures = [
        # image, patient, study, view, findings
        ("e", "one", "1", "UNKNOWN", "Clear lungs."),
        ("d", "one", "1", "LATERAL", ""),
        ("c", "one", "1", "AP", "A nodule."),
        ("b", "one", "1", "PA", ""),
        ("a", "one", "1", "AP", ""),
        ("f", "two", "1", "UNKNOWN", ""),
    ]
    data_dir = tmp_path_factory.mktemp("odd")
    image = cv2.imencode(".png", np.arange(1024, dtype=np.uint8).reshape(32, 32))[1].tobytes()
    examples = [
        (name, {"image": image, "image_id": name, "patient_id": patient, "study_id": study, "view": view,
                "labels": np.zeros(1, np.int8), "report": {"findings": findings, "impression": "", "text": ""}})
        for name, patient, study, view, findings in pictures
    ]  # fmt: skip
    writer.write(
        data_dir,
        "odd",
        features=schema.features(["a finding"], report=True),
        examples={"train": lambda: iter(examples)},
        metadata={"label_names": ["a finding"]},
        description="Ramps.",
    )
    return source.select(converted_sets.open_set("odd", data_dir), "train")


def two_views(study, rng):
    """A frontal and a lateral picture of a study, zeros where there is none."""
    blank = np.zeros((32, 32), np.uint8)
    chosen = [pick(study[part], rng) for part in ("frontals", "laterals")]
    pictures = [blank if example is None else FIT(crops.decode(example["image"]), rng) for example in chosen]
    return {"image": np.stack(pictures), "has_lateral": study["has_lateral"], "noise": rng.random()}


def test_every_study_has_its_own_pictures_and_report(frontal_lateral):
    whole = studies(frontal_lateral)
    assert len(whole) == len(set(frontal_lateral.table["study_id"])) == len(frontal_lateral) // 2
    for study in (whole[number] for number in range(len(whole))):
        (frontal,), (lateral,) = study["frontals"], study["laterals"]
        assert frontal["view"] in ("PA", "AP") and lateral["view"] == "LATERAL" and not study["others"]
        assert study["has_frontal"] and study["has_lateral"]
        for picture in (frontal, lateral):
            for name in ("study_id", "patient_id", "set", "report"):
                assert picture[name] == study[name], name
            np.testing.assert_array_equal(picture["labels"], study["labels"])
        assert study["image_id"] == f"{frontal['image_id']}, {lateral['image_id']}"
        assert study["report"]["findings"]
    assert len({study["report"]["text"] for study in (whole[n] for n in range(len(whole)))}) > 5


def test_table_is_what_the_studies_say(some_missing):
    whole = studies(some_missing)
    assert set(whole.table["study_id"]) == set(some_missing.table["study_id"])
    for number, row in enumerate(whole.table.to_dict("records")):
        study = whole[number]
        for name in ("image_id", "patient_id", "study_id"):
            assert row[name] == study[name]
        for part in ("frontals", "laterals", "others"):
            assert row[part] == len(study[part])
        np.testing.assert_array_equal(row["labels"], study["labels"])


def test_missing_views_are_marked_and_can_be_left_out(some_missing):
    whole = studies(some_missing)
    lacking = [(study["has_frontal"], study["has_lateral"]) for study in (whole[n] for n in range(len(whole)))]
    no_lateral = sum(not lateral for _, lateral in lacking)
    assert no_lateral == -(-len(whole) // 3) and sum(not frontal for frontal, _ in lacking) == 1
    both = studies(some_missing, require_frontal=True, require_lateral=True)
    assert len(both) == sum(frontal and lateral for frontal, lateral in lacking)
    assert sum(both.left_out.values()) == len(whole) - len(both)
    assert f"left out: {both.left_out['without a lateral picture']} without a lateral picture" in repr(both)
    kept = [both[number] for number in range(len(both))]
    assert all(study["has_frontal"] and study["has_lateral"] for study in kept)
    expected = [whole[n]["image_id"] for n in range(len(whole)) if all(lacking[n])]
    assert [study["image_id"] for study in kept] == expected


def test_views_in_order_reports_of_any_picture_and_study_ids_per_patient(odd):
    whole = studies(odd)
    by_patient = {study["patient_id"]: study for study in (whole[0], whole[1])}
    assert len(whole) == len(by_patient) == 2
    one, two = by_patient["one"], by_patient["two"]
    assert [example["image_id"] for example in one["frontals"]] == ["b", "a", "c"]
    assert [example["image_id"] for example in one["laterals"]] == ["d"]
    assert [example["image_id"] for example in one["others"]] == ["e"]
    assert one["report"]["findings"] == "A nodule."
    assert not two["has_frontal"] and not two["has_lateral"] and len(two["others"]) == 1
    assert two["report"] == {"findings": "", "impression": "", "text": ""}
    reported = studies(odd, require_report=True)
    assert len(reported) == 1 and reported.left_out == {"without a report": 1}
    assert reported[0]["patient_id"] == "one"
    with pytest.raises(IndexError):
        whole[2]


def test_every_picture_of_a_study_is_picked_in_the_end(odd):
    (study,) = (study for study in map(studies(odd).__getitem__, range(2)) if study["has_frontal"])
    rng = np.random.default_rng(0)
    drawn = [pick(study["frontals"], rng)["image_id"] for _ in range(300)]
    assert set(drawn) == {"a", "b", "c"} and min(map(drawn.count, "abc")) > 60
    assert pick([], rng) is None


def test_nothing_left_says_which_filter_and_what_there_was(frontal_lateral, odd, written):
    laterals = source.select(frontal_lateral.converted_set, "train", projections=["LATERAL"])
    with pytest.raises(ValueError, match=r"all \d+ that reached this filter are without a frontal.*0 with frontals"):
        studies(laterals, require_frontal=True)
    without_reports = source.select(converted_sets.open_set("plain", written.data_dir), "train")
    assert studies(without_reports)[0]["report"] == {"findings": "", "impression": "", "text": ""}
    with pytest.raises(ValueError, match="No study is left.*without a report.*'plain'"):
        studies(without_reports, require_report=True)
    unknown = source.select(odd.converted_set, "train", projections=["UNKNOWN"])
    with pytest.raises(ValueError, match="all 2 .* without a lateral picture.*2 with others"):
        studies(unknown, require_lateral=True)


def test_training_batches_of_studies_do_not_depend_on_threads_or_pickling(some_missing):
    whole = studies(some_missing, require_frontal=True)
    expected = [pipeline.dataset([whole], None, two_views, 8, seed=3)[step] for step in range(2)]
    again = pickle.loads(pickle.dumps(whole))
    assert repr(again) == repr(whole)
    made = pipeline.iterator(pipeline.dataset([again], None, two_views, 8, seed=3), num_threads=3)
    seen = 0
    for step in range(2):
        batch = next(made)
        for name, rows in expected[step].items():
            np.testing.assert_array_equal(batch[name], rows)
        assert batch["image"].shape == (8, 2, 32, 32) and (batch["image"][:, 0].std((1, 2)) > 5).all()
        np.testing.assert_array_equal(batch["image"][:, 1].any((1, 2)), batch["has_lateral"])
        seen += batch["has_lateral"].sum()
    assert 0 < seen < 16


def test_evaluation_takes_every_study_once(some_missing):
    whole = studies(some_missing, require_frontal=True)
    labels = [
        batch["labels"][valid] for batch, valid in pipeline.evaluation_batches(whole, two_views, 5, num_threads=1)
    ]
    np.testing.assert_array_equal(np.concatenate(labels), np.stack(list(whole.table["labels"])))


def test_an_undecodable_picture_is_named(written):
    plain = source.select(converted_sets.open_set("plain", written.data_dir), "test")

    def read_all(study, rng):
        everything = study["frontals"] + study["laterals"] + study["others"]
        return {"mean": np.mean([crops.decode(example["image"]).mean() for example in everything])}

    with pytest.raises(ValueError, match=r"Picture '.*test-1.*' of set 'plain' cannot be decoded"):
        for number in range(2):
            pipeline.dataset([studies(plain)], None, read_all, 1, seed=0)[number]


def test_copies_of_a_report_are_left_out(frontal_lateral):
    """The first of the same words stay; case, numbers and punctuation make no other report, and none is no copy."""
    said = ["Clear lungs.", "clear  LUNGS 12", "No effusion.", "", "Clear, lungs!", "", "A clear lung."]
    whole = studies(frontal_lateral)

    def kept(copies, **required):
        texts = iter(said + (len(whole) - len(said)) * [""])
        return studies(frontal_lateral, report_copies=copies, read=lambda report: next(texts), **required)

    every, found = whole.table["study_id"].tolist(), kept(1)
    assert found.table["study_id"].tolist() == [every[i] for i in range(len(whole)) if i not in (1, 4)]
    assert found.left_out == {"beyond 1 of the same words": 2}
    assert len(kept(2)) == len(whole) - 1 and len(kept(3)) == len(whole)
    both = kept(1, require_report=True)
    assert both.table["study_id"].tolist() == [every[i] for i in (0, 2, 6)]
    assert both.left_out == {"without a report": len(whole) - 5, "beyond 1 of the same words": 2}
