"""Users' tables: every spelling of nothing, quotes, formats, encodings and lists come out as what they mean."""

import gzip
import json
import sys
import unicodedata
import zipfile
from pathlib import Path

import pandas
import pytest

from cxrjax.datasets import catalogue, table
from cxrjax.datasets.files import decoded


def read(path, content, **options):
    """The table as column -> cells, and the remarks on it."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with table.remarks() as said:
        return table.read_table(path, **options).to_dict("list"), said


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "N/A", "None", "NULL", "<NA>", "-", "#N/A", " nan "])
def test_words_for_nothing_are_blank_and_counted(tmp_path, word):
    cells, said = read(tmp_path / "t.csv", f"file,patient,labels\n0.png,1,Mass\n1.png,{word},{word}\n2.png,2,{word}\n")
    assert cells == {"file": ["0.png", "1.png", "2.png"], "patient": ["1", "", "2"], "labels": ["Mass", "", ""]}
    word = word.strip()
    counts = f"{word!r} in patient (1), {word!r} in labels (2)"
    assert said == [f"Cells of t.csv that say that nothing is known, read as blank: {counts}."]


def test_words_that_only_begin_like_nothing_are_kept(tmp_path):
    cells, said = read(tmp_path / "t.csv", "file,patient\nna.png,Nana\n-1.png,-1\nnone.png,None of them\n")
    assert cells == {"file": ["na.png", "-1.png", "none.png"], "patient": ["Nana", "-1", "None of them"]}
    assert said == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('file,text\n0.png,a\n1.png,"never closed\n2.png,b\n3.png,c\n', 3),
        ('file,text\n0.png,"never closed\n1.png,b\n2.png,"c"\n', 2),
        ('file,text\n0.png,"closed" too early\n', 2),
    ],
)
def test_quotes_that_do_not_match_are_refused_with_their_line(tmp_path, text, line):
    """A quote that is never closed swallowed all rows after it."""
    with pytest.raises(table.TableError, match=f"a quote that opens in line {line} or soon after is never closed"):
        read(tmp_path / "t.csv", text)


@pytest.mark.parametrize(
    ("cell", "meant"),
    [
        (r'"a \"small\" mass, left"', 'a "small" mass, left'),
        ('"a ""small"" mass, left"', 'a "small" mass, left'),
        ('"two\nlines"', "two\nlines"),
        ('5" tube', '5" tube'),
    ],
)
def test_quotes_inside_cells_are_read(tmp_path, cell, meant):
    cells, _ = read(tmp_path / "t.csv", f"file,text\n0.png,{cell}\n1.png,b\n")
    assert cells["text"] == [meant, "b"]


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;\r"])
def test_excels_line_above_the_header_names_the_separator(tmp_path, line):
    cells, _ = read(tmp_path / "t.csv", f"{line}\nfile;age,years\n0.png;5,5\n")
    assert cells == {"file": ["0.png"], "age,years": ["5,5"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_letters_survive_every_encoding(tmp_path, encoding):
    cells, said = read(tmp_path / "t.csv", "file,text\n0.png,Herzgröße normal\n".encode(encoding))
    assert cells["text"] == ["Herzgröße normal"]
    assert bool(said) == (encoding == "cp1252")


def test_an_encoding_can_be_named(tmp_path):
    data = "file,text\n0.png,лёгкие чистые\n".encode("cp1251")
    cells, said = read(tmp_path / "t.csv", data, encoding="cp1251")
    assert cells["text"] == ["лёгкие чистые"] and said == []
    with pytest.raises(table.TableError, match="cannot be read: unknown encoding: cp9999"):
        read(tmp_path / "t.csv", data, encoding="cp9999")


def test_reports_in_utf_16_and_windows_1252_are_decoded():
    for encoding in ("utf-8", "utf-16", "utf-16-le", "cp1252"):
        assert decoded("Kein Erguß.".encode(encoding))[0] == "Kein Erguß."


def test_spellings_that_look_the_same_are_the_same(tmp_path):
    one, other = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    cells, _ = read(tmp_path / "t.csv", f"{other},patient\n{one}.png,{one}\n{other}.png,{other}\n")
    assert cells == {one: [f"{one}.png"] * 2, "patient": [one] * 2}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{ID:05d}.png", "00007.png"),
        ("{ID:>4}.png", "   7.png"),
        ("{ID:.1f}.png", "7.0.png"),
        ("{name:_<5}.png", "ab___.png"),
        ("{name}/{ID:03}.png", "ab/007.png"),
    ],
)
def test_formats_in_patterns_are_followed(spec, expected):
    frame = pandas.DataFrame({"ID": ["7", ""], "name": ["ab", "cd"]})
    texts, is_pattern = table.pattern(frame, spec, Path("t.csv"))
    assert is_pattern and texts[0] == expected
    assert texts[1] == ("" if "ID" in spec else "cd___.png")


def test_a_format_that_a_cell_does_not_have_is_refused():
    frame = pandas.DataFrame({"ID": ["7a"]})
    with pytest.raises(table.TableError, match="'7a' of column 'ID' of t.csv cannot be written in the format '05d'"):
        table.pattern(frame, "{ID:05d}.png", Path("t.csv"))


def test_lists_and_json_become_texts(tmp_path):
    rows = [{"file": "0.png", "labels": ["Mass", "Effusion"], "n": 1.0}, {"file": "1.png", "labels": [], "n": None}]
    expected = {"file": ["0.png", "1.png"], "labels": ["Mass|Effusion", ""], "n": ["1", ""]}
    assert read(tmp_path / "t.json", json.dumps(rows))[0] == expected
    assert read(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))[0] == expected
    pandas.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    assert table.read_table(tmp_path / "t.parquet").to_dict("list") == expected
    with pytest.raises(table.TableError, match="it is no list of objects"):
        read(tmp_path / "t.json", '{"file": ["0.png"]}')


def test_the_first_sheet_of_a_workbook_is_read_and_others_are_told(tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    rows = pandas.DataFrame(
        {"file": ["0.png", "NA"], "patient": [7, None], "day": pandas.to_datetime(["2020-02-01"] * 2)}
    )
    with pandas.ExcelWriter(path) as workbook:
        rows.to_excel(workbook, sheet_name="list", index=False)
        rows.to_excel(workbook, sheet_name="old", index=False)
    with table.remarks() as said:
        found = table.read_table(path).to_dict("list")
    assert found == {"file": ["0.png", ""], "patient": ["7", ""], "day": ["2020-02-01 00:00:00"] * 2}
    assert (
        said[0] == "Of the sheets of t.xlsx the first, 'list', was read, not 'old'." and "'NA' in file (1)" in said[1]
    )


def test_a_workbook_without_openpyxl_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "t.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(table.TableError, match=r"Excel workbook: pip install 'cxrjax\[excel\]', or save it as CSV"):
        table.read_table(path)


@pytest.mark.parametrize(
    ("name", "start", "what"),
    [
        ("t.csv", b"PK\x03\x04", "a spreadsheet"),
        ("t.ods", b"PK\x03\x04", "a spreadsheet"),
        ("t.xls", b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
        ("t.csv", b"PAR1", "a Parquet file"),
        ("t.csv", b"\x1f\x8b", "a gzip file"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path, name, start, what):
    with pytest.raises(table.TableError, match=f"cannot be read: it is {what}.*, not text; save it as CSV"):
        read(tmp_path / name, start + b"\n1,2\n")


def test_cells_of_any_length_are_read(tmp_path):
    runs = "10 20 " * 30_000
    assert read(tmp_path / "t.csv", f"file,mask\n0.png,{runs}\n")[0] == {"file": ["0.png"], "mask": [runs.strip()]}


def test_gzipped_tables_are_read(tmp_path):
    assert read(tmp_path / "t.csv.gz", gzip.compress(b"file\n0.png\n"))[0] == {"file": ["0.png"]}


def test_a_table_packed_far_too_small_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_UNPACKED_BYTES", 2**20)
    bomb = gzip.compress(b"file\n" + b"0.png\n" * 2**19)
    monkeypatch.setattr(gzip, "decompress", None)  # which has no bound
    with pytest.raises(table.TableError, match="holds more than 1 MiB, 100 times its own size, .*unpack it"):
        read(tmp_path / "t.csv.gz", bomb)


def test_official_tables_report_their_unknown_cells(tmp_path):
    """PadChest's own table has rows whose Labels are nan; they stopped the conversion."""
    columns = (
        *("Projection", "PhotometricInterpretation_DICOM", "MethodLabel", "ImageID", "ImageDir", "StudyDate_DICOM"),
        *("StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Report", "Labels"),
    )
    rows = ["PA,MONOCHROME2,RNN_model,a.png,0,20100101,s,p,1950,F,normal,nan"]
    rows += ["PA,MONOCHROME2,RNN_model,b.png,0,20100101,t,q,1950,F,mass,\"['mass']\""]
    (tmp_path / "0").mkdir()
    for name in ("a", "b"):
        (tmp_path / "0" / f"{name}.png").write_bytes(b"")
    (tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_text(
        "\n".join([",".join(columns), *rows])
    )
    made = catalogue.manifest("padchest", tmp_path)
    assert made.problems == () and [row.labels for row in made.rows] == [(-2,), (1,)]
    assert any("'nan' in Labels (1)" in remark for remark in made.remarks)
