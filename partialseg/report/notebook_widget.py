"""A case in a notebook: the widget of ipyniivue, with the colours and the volumes of the report's viewer."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from partialseg.report.case_volumes import CaseVolumes
from partialseg.report.cases import organ_words
from partialseg.report.packed_volumes import pack_case
from partialseg.report.pictures import FILL_OPACITY, WINDOW_HU
from partialseg.report.viewer import label_colours

if TYPE_CHECKING:
    from ipyniivue import NiiVue


def widget(case: CaseVolumes, network: str | None = None, height: int = 480) -> NiiVue:
    """Show a case in a notebook: the scan, the truth as edges, one network's prediction filled.

    The volumes are those of the report: cropped to what is marked, see `partialseg.report.packed_volumes`. The
    patient's right is at the left.

    Args:
        case: As `partialseg.report.read_case` reads it.
        network: Whose prediction; the last one's unless given.
        height: In pixels.

    Returns:
        The widget, to be displayed as the last value of a cell. Its files are removed with it.

    Raises:
        ValueError: If there is no such network.
    """
    from ipyniivue import LUT, NiiVue, SliceType, Volume

    network = next(reversed(case.predictions)) if network is None else network
    if network not in case.predictions:
        raise ValueError(f"there is no network {network!r}, only {', '.join(case.predictions)}")
    packed = pack_case(case)
    folder = tempfile.TemporaryDirectory(prefix="partialseg-")
    files = {"scan": packed.scan, "truth": packed.truth, "prediction": packed.predictions[network]}
    for name, content in files.items():
        (Path(folder.name) / f"{name}.nii.gz").write_bytes(content)
    organs = case.classes[1:]
    labels = ["background", *map(organ_words, organs), "one organ or another"]

    def label_map(name: str, opacity: float, light: float) -> Volume:
        colours = LUT(lut=label_colours(organs, light), min=0, max=len(labels) - 1, labels=labels)
        path = Path(folder.name) / f"{name}.nii.gz"
        return Volume(path=path, opacity=opacity, colormap_label=colours)

    centre, width = WINDOW_HU
    window = {"cal_min": centre - width / 2, "cal_max": centre + width / 2}
    scan = Volume(path=Path(folder.name) / "scan.nii.gz", colormap="gray", **window)
    shown = NiiVue(
        height=height,
        slice_type=SliceType.MULTIPLANAR,
        is_radiological_convention=True,
        atlas_outline=1.0,
    )
    # The truth first: NiiVue draws edges only of the first map over a scan.
    shown.volumes = [scan, label_map("truth", 0.0, 0.25), label_map("prediction", FILL_OPACITY, 0.0)]
    weakref.finalize(shown, folder.cleanup)
    return shown
