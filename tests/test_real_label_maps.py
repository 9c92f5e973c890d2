"""Real anatomy, perfect truth: dressed WORD maps, each with one organ left, join a few full labels in training."""

import json

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.cards import read_card
from partialseg.data.phantom import dress_folder
from partialseg.data.phantom.cohorts import COHORTS
from partialseg.data.phantom.layouts import LAYOUTS
from partialseg.data.phantom.write import PRESETS, write_case
from partialseg.data.prepare import prepare
from partialseg.evaluation import evaluate
from partialseg.inference.predict import predict
from partialseg.training import read_config, train

pytestmark = pytest.mark.slow

WORD_VALUES = {"liver": 1, "spleen": 2, "pancreas": 8, "left_kidney": 3, "right_kidney": 4}
SPACING_MM = (6.0, 6.0, 6.0)


def write_every_second_voxel(label, folder):
    """An eighth of a label map: quick to dress, and no coarser than the voxels of the training."""
    source = nib.load(label)
    halved = np.asarray(source.dataobj)[::2, ::2, ::2]
    affine = source.affine @ np.diag([2, 2, 2, 1])
    nib.save(nib.Nifti1Image(halved, affine), folder / label.name)


def write_dataset(folder, name, image, label, organs, test_share):
    """One case with all values but those of `organs` hidden, and a card that says so."""
    for part in ("images", "labels"):
        (folder / name / part).mkdir(parents=True)
    (folder / name / "images" / image.name).symlink_to(image)
    source = nib.load(label)
    values = np.asarray(source.dataobj)
    kept = np.where(np.isin(values, [WORD_VALUES[organ] for organ in organs]), values, 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(kept, source.affine, source.header), folder / name / "labels" / label.name)
    lines = [f"  {WORD_VALUES[organ]}: {organ}" for organ in organs]
    card = folder / f"{name}.md"
    card.write_text(
        f"---\nname: {name}\nfiles: {{image: 'images/*.nii.gz', label: 'labels/*.nii.gz'}}\nlabels:\n"
        + "\n".join(lines)
        + f"\nannotated: [{', '.join(organs)}]\nsplits: {{test: {test_share}}}\n---\n"
    )
    return read_card(card)


@pytest.fixture(scope="module")
def raw_and_cards(real_data, tmp_path_factory):
    """Five datasets of one case and one organ each, and a sixth, fully annotated, to test on."""
    folder = tmp_path_factory.mktemp("word")
    (folder / "labels").mkdir()
    for label in sorted((real_data / "word_labels").glob("*.nii.gz")):
        write_every_second_voxel(label, folder / "labels")
    dressed = dress_folder(folder / "labels", folder / "dressed", "word")
    assert not dressed.problems
    assert len(dressed.written) == 6
    cards = []
    roles = [((organ,), 0.0) for organ in WORD_VALUES] + [(tuple(WORD_VALUES), 1.0)]
    for image, (organs, test_share) in zip(dressed.written, roles, strict=True):
        label = folder / "dressed" / "labels" / image.name
        name = f"word_{organs[0] if len(organs) == 1 else 'all'}"
        cards.append(write_dataset(folder / "raw", name, image, label, organs, test_share))
    return folder / "raw", cards


@pytest.fixture(scope="module")
def run(raw_and_cards):
    """The demo's training, F the phantom's BTCV, P the five dressed maps."""
    raw, cards = raw_and_cards
    layout, cohort = (next(one for one in every if one.dataset == "btcv") for every in (LAYOUTS, COHORTS))
    for index in range(PRESETS["demo"].cases["btcv"]):
        write_case(raw.parent / "phantom", layout, cohort, index, PRESETS["demo"], seed=0)
    (raw / "btcv").symlink_to(raw.parent / "phantom" / "btcv")
    result = prepare([read_card("btcv"), *cards], raw, raw.parent / "prepared", spacing_mm=SPACING_MM)
    assert not result.problems
    config = read_config("demo")
    first, second = config.stages
    stages = (first.model_copy(update={"epochs": 6}), second.model_copy(update={"patches_per_dataset": 18}))
    config = config.model_copy(update={"patch_size": (32, 48, 56), "stages": stages})
    return train(config, result.prepared, raw.parent / "run")


def test_five_single_organ_datasets_teach_all_five_organs(run, raw_and_cards, tmp_path):
    raw, cards = raw_and_cards
    predicted = predict(run, [raw], tmp_path / "predictions", card=cards[-1])
    assert not predicted.problems
    scores = evaluate(tmp_path / "predictions", raw, cards[-1], tmp_path / "scores").scores
    dice = scores.set_index("organ")["dice"]
    assert set(dice.index) == set(WORD_VALUES)
    # A few steps on five maps vary with the machine's threads. Seen, liver, spleen, pancreas, left and right kidney:
    # .88 .30 .54 .85 .86. An organ that is not learnt is near 0.
    assert (dice > 0.1).all(), dice
    assert dice.mean() > 0.35, dice


def test_next_to_nothing_is_found_in_a_pelvis(run, real_data, tmp_path):
    predicted = predict(run, [real_data / "vhf_pelvis_3mm_no_target_organ_ct.nii.gz"], tmp_path)
    sidecar = json.loads(next(tmp_path.glob("*.json")).read_text())
    scan = nib.load(predicted.written[0])
    pelvis_ml = float(np.prod(scan.header.get_zooms()) * np.prod(scan.shape)) / 1000
    assert sum(sidecar["volumes_ml"].values()) < 0.03 * pelvis_ml, sidecar


def test_real_scans_come_back_in_their_own_geometry(run, real_data, tmp_path):
    names = ["lidc0001_upper_abdomen_ct.nii.gz", "totalseg_example_3mm_ct.nii.gz"]
    predicted = predict(run, [*(real_data / name for name in names), real_data / "ts_dicom20"], tmp_path)
    assert not predicted.problems
    for name, path in zip(names, predicted.written, strict=False):
        scan, labels = nib.load(real_data / name), nib.load(path)
        assert labels.shape == scan.shape
        assert np.allclose(labels.affine, scan.affine)
    series = nib.load(predicted.written[2])
    drawn = nib.load(real_data / "ts_dicom20_seg_v2ids.nii.gz")
    assert sorted(series.shape) == sorted(drawn.shape)
