"""Pages of the site that are made from the code; needs the extra `docs`, like the site itself."""

import importlib.util
from pathlib import Path

import pytest

from cxrjax import methods
from cxrjax.datasets import catalogue

pytest.importorskip("mkdocs")
pytest.importorskip("griffe")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_of_docs", ROOT / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_set_and_room_has_a_page(site):
    pages = site.made()
    rooms = {path.parent.name for path in (ROOT / "cxrjax").glob("*/__init__.py")}
    assert {path for path in pages if path.startswith("methods/")} == {f"methods/{n}.md" for n in methods.available()}
    assert {path for path in pages if path.startswith("sets/")} == {f"sets/{name}.md" for name in catalogue.SETS}
    assert {f"api/{room}.md" for room in rooms} <= set(pages)
    assert all(text.startswith("# ") and len(text) > 100 for path, text in pages.items() if "api/" not in path)
    assert "loss.form = 'symmetric'" in pages["methods/spcl.md"]


@pytest.mark.parametrize(
    ("name", "title", "row", "other"),
    [
        ("dino", "DINO", "| DINO |", "| DINOv2 |"),
        ("dinov2", "DINOv2", "| DINOv2 |", "| DINO |"),
        ("spcl", "S-PCL", "| S-PCL, ρ = 0.25 |", "| SPCXR |"),
        ("mae", "MAE", "| MAE |", "| DINO |"),
    ],
)
def test_a_method_has_its_own_rows_of_the_records(site, name, title, row, other):
    text = "\n".join(site.measured(name, title))
    assert row in text and other not in text
    assert "2026-11-22-image-methods-phantoms.md" in text


def test_a_method_that_no_record_knows_says_nothing(site):
    assert site.measured("unheard_of", "Unheard of") == []


def test_every_record_that_pages_quote_is_there(site):
    assert all((ROOT / f"docs/records/{record}.md").is_file() for record in site.RECORDS)


def test_equations_tables_and_addresses_of_docstrings(site):
    assert site.paragraph("    loss = −a") == "    loss = −a"
    assert site.paragraph("t     here   meaning\nτ     0.1    temperature").startswith("```text\nt ")
    assert site.paragraph("One <tag> and `code <T>`.") == "One &lt;tag> and `code <T>`."
    assert site.linked("physionet.org/content/x") == "[physionet.org/content/x](https://physionet.org/content/x)"
