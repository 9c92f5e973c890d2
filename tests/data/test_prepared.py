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
    for name, dtype in (("image", np.int16), ("label", np.uint8), ("foreground", np.int32)):
        array = np.arange(24, dtype=dtype)
        np.save(folder / f"{name}.npy", array)
        read = getattr(prepared, name)(case)
        assert isinstance(read, np.memmap)
        np.testing.assert_array_equal(read, array)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="there is no manifest; run `partialseg prepare"):
        read_prepared(tmp_path)


@pytest.mark.parametrize("content", ["{", json.dumps({"format": 0})])
def test_a_manifest_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"is not JSON|has format 0"):
        read_prepared(tmp_path)
