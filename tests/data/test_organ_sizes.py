"""Shares of the classes in scans and in patches; no TensorFlow."""

import numpy as np
import pytest

from partialseg.data.labels import candidate_table
from partialseg.data.organ_sizes import organ_size_prior
from partialseg.data.prepared import Case, Dataset, Prepared, read_prepared
from partialseg.data.sampling import PatchConfig, PatchPlan
from partialseg.errors import DataError

CLASSES = ("background", "liver", "spleen")
ANNOTATED = {"full": ("liver", "spleen"), "livers": ("liver",), "spleens": ("spleen",)}
IGNORED, EITHER = 3, 4


def make_prepared(folder, labels):
    """`labels`: (dataset, name, split) and its label map, values as in `candidate_table`."""
    cases = []
    for (dataset, name, split), label in labels.items():
        case_folder = folder / dataset / name
        case_folder.mkdir(parents=True)
        np.save(case_folder / "label.npy", label.astype(np.uint8))
        values = [value for value in (1, 2) if (label == value).any()]
        places = [np.flatnonzero(label == value) for value in values]
        np.save(case_folder / "foreground.npy", np.concatenate([[], *places]).astype(np.int32))
        stops = np.cumsum([len(place) for place in places]).tolist()
        parts = tuple(zip(values, [0, *stops], stops, strict=False))
        cases.append(Case(dataset, name, split, label.shape, (), parts, (), "", "", ""))
    datasets = {
        name: Dataset(name, organs, candidate_table(CLASSES, organs, [frozenset({"liver", "spleen"})]))
        for name, organs in ANNOTATED.items()
    }
    return Prepared(folder, CLASSES, (3.0, 1.5, 1.5), datasets, tuple(cases))


def body(spleen=True):
    """A liver of 6 x 6 x 6 and a spleen of 3 x 3 x 3 in opposite corners."""
    label = np.zeros((24, 24, 24), np.uint8)
    label[3:9, 3:9, 3:9] = 1
    label[18:21, 18:21, 18:21] = 2 if spleen else 0
    return label


def config(**options):
    return PatchConfig(**{"patch_size": (8, 8, 8), "batch_size": 2, "foreground": 0.5, **options})


@pytest.fixture
def prepared(tmp_path):
    return make_prepared(
        tmp_path,
        {
            ("full", "case0", "train"): body(),
            ("full", "held_out", "test"): np.full((4, 4, 4), 1),
            ("livers", "case0", "train"): body(spleen=False),
        },
    )


def test_whole_scans_are_counted(prepared):
    shares = organ_size_prior(prepared)
    assert list(shares) == list(CLASSES)
    assert shares["liver"] == pytest.approx(216 / 24**3)
    assert shares["spleen"] == pytest.approx(27 / 24**3)
    assert sum(shares.values()) == pytest.approx(1)


def test_ignored_voxels_do_not_count_and_unsure_ones_count_in_parts(tmp_path):
    label = np.array([0, 0, 0, 1, 2, EITHER, EITHER, EITHER, IGNORED, IGNORED]).reshape(1, 1, 10)
    shares = organ_size_prior(make_prepared(tmp_path, {("full", "case0", "train"): label}))
    assert shares == pytest.approx({"background": 3 / 8, "liver": 2.5 / 8, "spleen": 2.5 / 8})


def test_a_patch_as_large_as_the_scan_gives_the_same(prepared):
    assert organ_size_prior(prepared, config(patch_size=(30, 24, 24)), 5) == pytest.approx(
        organ_size_prior(prepared)
    )


def test_patches_hold_more_of_the_organ_on_which_they_are_centred(prepared):
    scans, patches = organ_size_prior(prepared), organ_size_prior(prepared, config())
    assert patches["liver"] > 3 * scans["liver"]
    # The partial dataset is centred on livers, whatever the fully annotated one is centred on.
    assert patches["spleen"] < 3 * scans["spleen"]


def test_shares_are_those_of_the_stream_that_training_draws(prepared):
    """The liver's can be counted in the partially annotated patches themselves."""
    plan = PatchPlan(prepared, config(datasets=["livers"], batches_per_epoch=1000))
    label = prepared.label(prepared.select("livers")[0])
    drawn = [
        label[tuple(slice(start, start + 8) for start in draw.start)]
        for index in range(1000)
        for draw in plan.batch(index)
    ]
    assert organ_size_prior(prepared, config(), 4000)["liver"] == pytest.approx(
        np.mean([patch == 1 for patch in drawn]), rel=0.1
    )


def test_only_the_datasets_that_are_drawn_from_matter(tmp_path):
    prepared = make_prepared(
        tmp_path,
        {
            ("full", "case0", "train"): body(),
            ("livers", "case0", "train"): body(spleen=False),
            ("spleens", "case0", "train"): body(),
        },
    )
    of_livers = organ_size_prior(prepared, config(datasets=["full", "livers"]))
    of_spleens = organ_size_prior(prepared, config(datasets=["full", "spleens"]))
    assert of_livers["liver"] > 2 * of_spleens["liver"]
    assert of_spleens["spleen"] > 2 * of_livers["spleen"]
    assert organ_size_prior(prepared, config(datasets=["full"]))["spleen"] > of_livers["spleen"]


def test_the_seed_decides(prepared):
    again, other = (organ_size_prior(prepared, config(seed=seed), 200) for seed in (0, 1))
    assert organ_size_prior(prepared, config(), 200) == again
    assert again != other


def test_without_a_fully_annotated_training_case_it_says_so(tmp_path):
    prepared = make_prepared(
        tmp_path, {("livers", "case0", "train"): body(False), ("full", "case0", "test"): body()}
    )
    with pytest.raises(DataError, match="no fully annotated training case"):
        organ_size_prior(prepared)


@pytest.mark.parametrize("patches", [None, config()])
def test_an_organ_that_no_case_shows_is_named(tmp_path, patches):
    prepared = make_prepared(tmp_path, {("full", "case0", "train"): body(spleen=False)})
    with pytest.raises(DataError, match="shows spleen"):
        organ_size_prior(prepared, patches)


def test_on_prepared_phantoms(tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    scans = organ_size_prior(prepared)
    patches = organ_size_prior(prepared, PatchConfig(patch_size=(16, 24, 24)), 200)
    for shares in (scans, patches):
        assert tuple(shares) == prepared.classes
        assert sum(shares.values()) == pytest.approx(1)
        assert all(share > 0 for share in shares.values())
    assert patches["background"] < scans["background"]
