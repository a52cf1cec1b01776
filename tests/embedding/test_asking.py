"""Nearest pictures and copies are those of a plain loop, whatever the parts that a table is read in."""

import numpy as np
import pyarrow
import pytest

from cxrjax.embedding import asking, growing, scatter
from cxrjax.imaging import fingerprint

COUNT = 50


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(3, 1, (COUNT, 5)).astype(np.float32)


@pytest.fixture
def file(features, tmp_path):
    looks = [np.random.default_rng(i).bytes(128).hex() for i in range(COUNT)]
    looks[40] = f"{int(looks[7], 16) ^ ((1 << 30) - 1):0256x}"
    features[45] = features[12]
    features[30] = features[29] + 1e-3
    columns = {
        "path": [f"p{i}" for i in range(COUNT)],
        "embedding": list(features),
        "height": range(COUNT),
        "width": [3] * COUNT,
        "steps": [[]] * COUNT,
        "fingerprint": looks,
    }
    table = pyarrow.table(columns, schema=growing.COLUMNS)
    growing.write(tmp_path / "f.parquet", table.schema, [table[:20], table[20:]])
    return tmp_path / "f.parquet"


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("rows", [7, 1000])
def test_nearest_are_those_of_the_loop(file, features, rows, monkeypatch):
    monkeypatch.setattr(asking.features, "__defaults__", (rows,))
    queries = np.random.default_rng(1).normal(0, 1, (3, 5))
    found, places = asking.nearest(file, queries, 60)
    assert places.shape == (3, COUNT)
    _, few = asking.nearest(file, queries, 4)
    for number, query in enumerate(queries):
        cosines = np.array([cosine(query, row) for row in features])
        expected = sorted(range(COUNT), key=lambda row: (-np.float32(cosines[row]), row))
        np.testing.assert_allclose(found[number], np.sort(cosines)[::-1], atol=1e-6)
        assert set(few[number]) == set(expected[:4])
    _, equal = asking.nearest(file, features[12:13], 2)
    assert equal.tolist() == [[12, 45]]


@pytest.mark.parametrize(("rows", "block"), [(7, 11), (1000, 2048)])
def test_copies_are_those_of_the_loop(file, features, rows, block, monkeypatch):
    monkeypatch.setattr(asking.features, "__defaults__", (rows,))
    monkeypatch.setattr(fingerprint, "BLOCK", block)
    centred = features - features.mean(axis=0)
    near = {}
    for i in range(COUNT):
        j = max((j for j in range(COUNT) if j != i), key=lambda j: cosine(centred[i], centred[j]))
        if cosine(centred[i], centred[j]) >= 0.99:
            near[tuple(sorted((i, j)))] = cosine(centred[i], centred[j])
    assert {(12, 45), (29, 30)} <= set(near)
    found = asking.copies(file)
    pairs = [(int(pair.path[1:]), int(pair.other[1:])) for pair in found]
    assert pairs == sorted({*near, (7, 40)})
    for (i, j), pair in zip(pairs, found, strict=True):
        assert pair.cosine == pytest.approx(cosine(centred[i], centred[j]), abs=1e-5)
        assert pair.how == ("fingerprint" if (i, j) == (7, 40) else "features")
        assert (pair.bits == 30) == ((i, j) == (7, 40))


def test_components_are_those_of_the_singular_vectors(file, features, monkeypatch):
    monkeypatch.setattr(asking.features, "__defaults__", (7,))
    places, shares = scatter.components(file)
    centred = (features - features.mean(axis=0)).astype(float)
    _, size, axes = np.linalg.svd(centred, full_matrices=False)
    for i in range(2):
        axis = axes[i] * np.sign(axes[i][np.abs(axes[i]).argmax()])
        np.testing.assert_allclose(places[:, i], centred @ axis, atol=1e-5)
    np.testing.assert_allclose(shares, (size**2 / (size**2).sum())[:2], atol=1e-6)


def test_dots_lie_at_their_components_in_their_colours(file):
    places, _ = scatter.components(file)
    drawn = scatter.draw(file, "height")
    canvas = drawn[-scatter.SIDE_PX - 2 * (title := (len(drawn) - scatter.SIDE_PX) // 3) : -2 * title]
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    for number in (places[:, 0].argmin(), places[:, 1].argmax()):
        x, y = 30 + (places[number] - low) / span * 840
        colour = canvas[900 - round(y), round(x)]
        assert colour.tolist() == style_colour(number).tolist()
    assert len(scatter.draw(file, "width")) > len(scatter.draw(file))
    assert len(np.unique(scatter.draw(file, "path").reshape(-1, 3), axis=0)) > 8


def style_colour(number):
    from cxrjax.drawing import style

    return style.viridis(np.array([[number / (COUNT - 1)]]))[0, 0]
