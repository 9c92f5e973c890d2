"""Which files are predicted label maps, and what lies beside them."""

from pathlib import Path

from partialseg.data.volumes import sidecar_path
from partialseg.evaluation.predictions import label_maps


def test_label_maps_are_named_as_predict_names_scans(tmp_path):
    for name in ("a.nii.gz", "B.NII.GZ", "c.1.nii", ".d.nii.gz", "e.nrrd", "f.json"):
        (tmp_path / name).touch()
    (tmp_path / "g.nii").mkdir()
    found = label_maps(tmp_path)
    assert {name: path.name for name, path in found.items()} == {
        "a": "a.nii.gz", "B": "B.NII.GZ", "c.1": "c.1.nii",
    }  # fmt: skip
    assert sidecar_path(found["B"]) == tmp_path / "B.json"
    assert label_maps(Path(tmp_path / "nowhere")) == {}
