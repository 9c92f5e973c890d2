"""The folder of prepared cases: written, read again, and refused where it is not one."""

import json

import numpy as np
import pytest

from partialseg.data.labels import candidate_table
from partialseg.data.prepared import Case, Dataset, Prepared, read_prepared, write_manifest
from partialseg.errors import DataError

CLASSES = ("background", "liver", "spleen")


def _case(dataset, name, split):
    return Case(
        dataset=dataset,
        name=name,
        split=split,
        shape=(2, 3, 4),
        affine=tuple(map(tuple, np.diag([1.5, 1.5, 3.0, 1.0]).tolist())),
        foreground=((1, 0, 2),),
        voxels=(2,),
        image_source="image.nii.gz",
        label_source="label.nii.gz",
        fingerprint="0",
        notes=("a note",),
    )


@pytest.fixture
def prepared(tmp_path):
    datasets = {
        "full": Dataset("full", ("liver", "spleen"), candidate_table(CLASSES, CLASSES[1:])),
        "part": Dataset("part", ("liver",), candidate_table(CLASSES, ["liver"])),
    }
    cases = (_case("full", "a", "train"), _case("full", "b", "test"), _case("part", "a", "train"))
    return Prepared(tmp_path, CLASSES, (3.0, 1.5, 1.5), datasets, cases)


def test_what_is_written_is_read_again(prepared):
    write_manifest(prepared)
    again = read_prepared(prepared.folder)
    assert (again.classes, again.spacing_mm, again.cases) == (CLASSES, (3.0, 1.5, 1.5), prepared.cases)
    for name, dataset in prepared.datasets.items():
        assert again.datasets[name].annotated == dataset.annotated
        np.testing.assert_array_equal(again.datasets[name].table, dataset.table)
        assert again.datasets[name].table.dtype == np.uint8
    assert again.organs == ("liver", "spleen")


def test_a_dataset_knows_whether_its_background_is_background_alone(prepared):
    assert prepared.datasets["full"].fully_annotated
    assert not prepared.datasets["part"].fully_annotated


def test_cases_are_selected_by_dataset_and_split(prepared):
    def names(**wanted):
        return [(case.dataset, case.name) for case in prepared.select(**wanted)]

    assert names() == [("full", "a"), ("full", "b"), ("part", "a")]
    assert names(dataset="full") == [("full", "a"), ("full", "b")]
    assert names(split="train") == [("full", "a"), ("part", "a")]
    assert names(dataset="part", split="test") == []


def test_arrays_are_memory_mapped(prepared):
    case = prepared.cases[0]
    folder = prepared.folder / case.dataset / case.name
    folder.mkdir(parents=True)
    arrays = {
        "image": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        "label": np.zeros((2, 3, 4), np.uint8),
        "foreground": np.array([3, 5], np.int32),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        read = getattr(prepared, name)(case)
        assert isinstance(read, np.memmap)
        np.testing.assert_array_equal(read, array)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="there is no manifest; run `partialseg prepare"):
        read_prepared(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[]", "has format None, expected 2"),
        (b'{"format": 0}', "has format 0, expected 2"),
        (b'{"format": 2}', "classes: the field is missing"),
    ],
    ids=["cut", "not utf-8", "deep", "a list", "another format", "nothing else"],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, content, words):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"manifest\.json: {words}") as error:
        read_prepared(tmp_path)
    assert "\n" not in str(error.value)


CASE, TABLE = ("cases", 1), ("datasets", "part", "table")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ((*CASE, "name"), "../b", r"cases\.1\.name: expected the name of one folder, found '\.\./b'"),
        ((*CASE, "name"), "..", r"cases\.1\.name"),
        ((*CASE, "name"), "/etc", r"cases\.1\.name"),
        ((*CASE, "name"), "a\\b", r"cases\.1\.name"),
        ((*CASE, "name"), "a\0b", r"cases\.1\.name"),
        ((*CASE, "name"), "", r"cases\.1\.name"),
        ((*CASE, "name"), 7, r"cases\.1\.name: found 7, expected text"),
        ((*CASE, "name"), "a", r"cases\.1 \(full, a\): is there twice"),
        ((*CASE, "dataset"), "../full", r"cases\.1\.dataset"),
        (
            (*CASE, "dataset"),
            "other",
            r"cases\.1 \(other, b\): found dataset other, expected one of full, part",
        ),
        ((*CASE, "split"), "all", r"cases\.1\.split"),
        ((*CASE, "shape"), [2, 3], r"cases\.1\.shape\.2: the field is missing"),
        ((*CASE, "shape"), [2, -3, 4], r"cases\.1\.shape\.1: found -3, expected greater than 0"),
        ((*CASE, "shape"), "large", r"cases\.1\.shape"),
        ((*CASE, "shape"), [10**4, 10**4, 10**4], r"cases\.1 .*too many voxels"),
        ((*CASE, "affine"), [[1, 0, 0, 0]], r"cases\.1\.affine"),
        ((*CASE, "affine"), [[float("nan"), 0, 0, 0]] * 4, r"cases\.1\.affine\.0\.0: .*finite"),
        ((*CASE, "foreground"), [[1, 0]], r"cases\.1\.foreground\.0\.2"),
        ((*CASE, "foreground"), [[1, 3, 2]], r"cases\.1 .*foreground"),
        ((*CASE, "foreground"), [[1, 0, 0]], r"cases\.1 .*foreground"),
        ((*CASE, "foreground"), [[9, 0, 2]], r"cases\.1 .*foreground"),
        ((*CASE, "voxels"), [], r"cases\.1 .*voxels has 0 entries, expected 1"),
        ((*CASE, "annotated"), ["heart"], r"cases\.1 .*annotated has heart"),
        (CASE, None, r"cases\.1: "),
        (("cases",), {}, r"cases: "),
        (("classes",), ["background"], r"classes: "),
        (("spacing_mm",), [3, 1.5, 0], r"spacing_mm\.2"),
        (("spacing_mm",), [3, 1.5, float("inf")], r"spacing_mm\.2"),
        (("datasets",), ["full"], r"datasets: "),
        (("datasets", "../x"), {"annotated": [], "table": [[1]]}, r"datasets\.\.\./x"),
        (TABLE, [[1, 0]] * 4, r"datasets\.part\.table: expected rows of 3 zeros and ones"),
        (TABLE, [[1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]], r"datasets\.part\.table: expected rows of 3"),
        (TABLE, [[1, 0, 0]], r"datasets\.part\.table: has 1 rows, expected over 3"),
        (TABLE, [[1, 0, 2]], r"datasets\.part\.table\.0\.2"),
        (TABLE, 3, r"datasets\.part\.table"),
    ],
)
def test_a_damaged_manifest_is_refused_with_the_place(prepared, place, value, words):
    write_manifest(prepared)
    path = prepared.folder / "manifest.json"
    content = json.loads(path.read_text())
    inner = content
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"manifest\.json: {words}.*; delete it") as error:
        read_prepared(prepared.folder)
    assert "\n" not in str(error.value)


def write_arrays(prepared):
    """Write what the entries of the cases say."""
    for case in prepared.cases:
        folder = prepared.folder / case.dataset / case.name
        folder.mkdir(parents=True)
        np.save(folder / "image.npy", np.zeros(case.shape, np.int16))
        np.save(folder / "label.npy", np.zeros(case.shape, np.uint8))
        np.save(folder / "foreground.npy", np.zeros(2, np.int32))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("image", np.zeros((2, 3, 5), np.int16)),
        ("image", np.zeros((2, 3, 4), np.float32)),
        ("label", np.zeros((2, 3, 4), np.int16)),
        ("label", np.zeros(24, np.uint8)),
        ("foreground", np.zeros(1, np.int32)),
        ("foreground", np.zeros(2, np.int64)),
    ],
)
def test_array_that_is_not_what_the_manifest_says_is_named(prepared, name, array):
    write_arrays(prepared)
    np.save(prepared.folder / "full" / "b" / f"{name}.npy", array)
    with pytest.raises(DataError, match=rf"full/b/{name}\.npy: holds {array.dtype} of shape .*, expected"):
        getattr(prepared, name)(prepared.cases[1])


def test_missing_and_short_files_are_counted_before_anything_is_read(prepared):
    write_arrays(prepared)
    prepared.check_files(prepared.cases)
    (prepared.folder / "full" / "b" / "label.npy").unlink()
    with (prepared.folder / "part" / "a" / "image.npy").open("r+b") as file:
        file.truncate(40)
    with pytest.raises(DataError, match=r"full/b/label\.npy: there is no such file \(and 1 more\)"):
        prepared.check_files(prepared.cases)
    with pytest.raises(DataError, match=r"part/a/image\.npy: has 40 bytes, expected over 48 bytes; prepare"):
        prepared.check_files(prepared.cases[2:])
