import dataclasses
from pathlib import Path

import numpy as np
import pytest

from partialseg.data.labels import candidate_table, candidates, ignored_value
from partialseg.data.prepare_case import choose_foreground
from partialseg.data.prepared import Case, Dataset, Prepared, read_prepared, write_manifest
from partialseg.errors import DataError
from partialseg.files import write_json
from partialseg.study.annotation import choose_single_organs, keep_single_organs

CLASSES = ("background", "liver", "spleen", "pancreas")
IGNORED = ignored_value(CLASSES)
FULL = candidate_table(CLASSES, CLASSES[1:])


def write_full(folder: Path, num_train: int = 6, table: np.ndarray = FULL) -> Prepared:
    """Cases of 8 x 8 x 8 voxels with all organs, some ignored voxels, and one case for testing."""
    cases = []
    for number in range(num_train + 1):
        name = f"case_{number}"
        label = np.zeros((8, 8, 8), np.uint8)
        label[1:3], label[3:5, :4], label[5, :2], label[7] = 1, 2, 3, IGNORED
        if len(table) > len(FULL):
            label[6] = len(FULL)
        indices, parts, voxels = choose_foreground(label, table, name)
        case = Case(
            dataset="full",
            name=name,
            split="test" if number == num_train else "train",
            shape=label.shape,
            affine=tuple(map(tuple, np.eye(4).tolist())),
            foreground=parts,
            voxels=voxels,
            image_source="image",
            label_source="label",
            fingerprint=f"of {name}",
        )
        place = folder / "full" / name
        place.mkdir(parents=True)
        np.save(place / "image.npy", np.full(label.shape, number, np.int16))
        np.save(place / "label.npy", label)
        np.save(place / "foreground.npy", indices)
        write_json(place / "case.json", dataclasses.asdict(case))
        cases.append(case)
    datasets = {"full": Dataset("full", CLASSES[1:], table)}
    prepared = Prepared(folder, CLASSES, (1.0, 1.0, 1.0), datasets, tuple(cases))
    write_manifest(prepared)
    return prepared


@pytest.fixture
def full(tmp_path) -> Prepared:
    return write_full(tmp_path / "all organs")


def test_the_papers_splits_give_five_equal_groups():
    names = [f"img{number:04d}" for number in range(24)]
    organs = ["liver", "spleen", "pancreas", "left_kidney", "right_kidney"]
    for single in (0, 5, 10, 15, 20):
        kept = list(choose_single_organs(names, organs, single / 24, seed=3).values())
        assert [kept.count(organ) for organ in organs] == [single // 5] * 5
        assert kept.count(None) == 24 - single


def test_the_choice_follows_the_seed_and_grows_with_the_share():
    names, organs = [f"{number}" for number in range(24)], ["liver", "spleen"]
    some, more = (choose_single_organs(names, organs, share, seed=1) for share in (0.25, 0.75))
    assert all(more[name] == organ for name, organ in some.items() if organ is not None)
    assert some != choose_single_organs(names, organs, 0.25, seed=2)


def test_one_case_keeps_all_organs_however_few_there_are():
    assert list(choose_single_organs(["a", "b"], ["liver"], 0.99).values()).count(None) == 1
    assert choose_single_organs(["a"], ["liver"], 0.99) == {"a": None}


def test_hidden_organs_become_background_that_may_be_one_of_them(full, tmp_path):
    result = keep_single_organs(full, tmp_path / "fewer", share=0.5)
    single = [case for case in result.cases if case.dataset != "full"]
    assert len(single) == 3
    assert {case.dataset for case in single} == {"full_liver", "full_spleen", "full_pancreas"}
    for case in single:
        (organ,) = result.datasets[case.dataset].annotated
        value = CLASSES.index(organ)
        before = np.load(full.folder / "full" / case.name / "label.npy")
        label = np.asarray(result.label(case))
        assert np.array_equal(label == value, before == value)
        assert np.array_equal(label == IGNORED, before == IGNORED)
        hidden = (before > 0) & (before < IGNORED) & (before != value)
        assert hidden.any()
        assert not label[hidden].any()
        sets = candidates(label, result.datasets[case.dataset].table)
        # The true class is always among the candidates; where an organ is hidden, so is every hidden one.
        named = before < IGNORED
        assert np.take_along_axis(sets, np.minimum(before, 3)[..., None].astype(int), -1)[named].all()
        expected = [int(index != value) for index in range(len(CLASSES))]
        assert (sets[hidden] == expected).all()
        assert (sets[before == value].sum(-1) == 1).all()


def test_foreground_lists_the_kept_organ_alone(full, tmp_path):
    result = keep_single_organs(full, tmp_path / "fewer", share=0.5)
    for case in result.cases:
        label = np.asarray(result.label(case)).ravel()
        indices = np.asarray(result.foreground(case))
        values = [value for value, _, _ in case.foreground]
        annotated = result.datasets[case.dataset].annotated
        assert values == [CLASSES.index(organ) for organ in annotated]
        for (value, start, stop), count in zip(case.foreground, case.voxels, strict=True):
            assert (label[indices[start:stop]] == value).all()
            assert count == stop - start == (label == value).sum()
        assert len(indices) == sum(case.voxels)


def test_test_cases_and_images_are_unchanged(full, tmp_path):
    result = keep_single_organs(full, tmp_path / "fewer", share=0.5)
    assert result.select(split="test") == full.select(split="test")
    assert {case.name for case in result.cases} == {case.name for case in full.cases}
    untouched = [case for case in result.cases if case.dataset == "full"]
    assert len(untouched) == 4
    for case in untouched:
        for name in ("image.npy", "label.npy", "foreground.npy"):
            files = [p.folder / case.dataset / case.name / name for p in (full, result)]
            assert files[0].read_bytes() == files[1].read_bytes()
    for case in result.cases:
        assert (np.asarray(result.image(case)) == int(case.name.removeprefix("case_"))).all()


def test_what_is_written_is_a_prepared_folder_and_is_kept(full, tmp_path):
    result = keep_single_organs(full, tmp_path / "fewer", share=0.5)
    again = read_prepared(tmp_path / "fewer")
    assert again.cases == result.cases
    assert list(again.datasets) == ["full", "full_liver", "full_pancreas", "full_spleen"]
    assert [d.fully_annotated for d in again.datasets.values()] == [True, False, False, False]
    labels = sorted((tmp_path / "fewer").rglob("label.npy"))
    before = [file.stat().st_ino for file in labels]
    assert keep_single_organs(full, tmp_path / "fewer", share=0.5).cases == result.cases
    assert [file.stat().st_ino for file in labels] == before


def test_a_set_that_may_be_the_kept_organ_is_ignored(tmp_path):
    liver_or_spleen = candidate_table(CLASSES, CLASSES[1:], [frozenset({"liver", "spleen"})])
    full = write_full(tmp_path / "all organs", 4, liver_or_spleen)
    result = keep_single_organs(full, tmp_path / "fewer", share=0.75)
    expected = {"full_liver": IGNORED, "full_spleen": IGNORED, "full_pancreas": 0}
    found = {c.dataset: int(result.label(c)[6, 0, 0]) for c in result.cases if c.dataset != "full"}
    assert found == expected


def test_a_dataset_that_is_not_fully_annotated_is_refused(tmp_path):
    prepared = write_full(tmp_path / "partial", 2, candidate_table(CLASSES, ["liver"]))
    with pytest.raises(DataError, match="expected one with all organs annotated"):
        keep_single_organs(prepared, tmp_path / "fewer", share=0.5)
