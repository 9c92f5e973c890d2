"""What the 3D/2D viewer of a report needs: NiiVue's code, and the volumes of its cases, as texts in the page.

NiiVue comes from the installed wheel of `ipyniivue`, whose `widget.js` is a module of the kind that anywidget
specifies (https://anywidget.dev/en/afm): it exports `initialize({model})` and `render({model, el})`, and reads from
the model what the traits of `ipyniivue.NiiVue` and `ipyniivue.Volume` hold. `viewer.js` is such a model.
"""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.colors import to_rgb

from partialseg.data.classes import organ_colours
from partialseg.errors import DataError
from partialseg.report.case_volumes import CaseVolumes
from partialseg.report.cases import ShownCase, organ_words, went_wrong
from partialseg.report.packed_volumes import ERROR_KINDS, PackedCase, pack_case
from partialseg.report.pictures import WINDOW_HU

#: Volumes are added until they take this much; in base64 they take a third more.
MAX_VOLUME_BYTES = 24_000_000
#: The colour of voxels that may be one organ or another, as in the pictures.
UNKNOWN_COLOUR = "#ffffff"
#: Of each of `ERROR_KINDS`; none is an organ's among the paper's.
ERROR_COLOURS = ("#ff40ff", "#ff9d00", "#ffffff")


@dataclass
class Viewer:
    """The cases that the viewer can show.

    Attributes:
        cases: What the page's script reads of each case, see `_described`.
        files: base64 of gzipped NIfTI files, by the names that `cases` gives them.
        left_out: What was left out, in words.
        size: Bytes of all volumes.
    """

    cases: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, shown: ShownCase, volumes: CaseVolumes) -> int | None:
        """Add a case unless the volumes would grow too large.

        Returns:
            Its place among `cases`; None where it was left out.
        """
        packed = pack_case(volumes)
        if self.size + packed.size > MAX_VOLUME_BYTES:
            who = f"{shown.dataset}, {shown.case}"
            self.left_out.append(f"{who} in the viewer: the volumes would make this file too large")
            return None
        self.size += packed.size
        number = len(self.cases)
        contents = {"scan": packed.scan, "truth": packed.truth}
        for what, maps in {"prediction": packed.predictions, "errors": packed.error_maps}.items():
            contents |= {f"{what}-{index}": file for index, file in enumerate(maps.values())}
        self.files |= {
            f"volume-{number}-{what}": base64.b64encode(file).decode("ascii")
            for what, file in contents.items()
        }
        self.cases.append(_described(shown, volumes, packed))
        return number

    def place_of(self, dataset: str, case: str, network: str) -> tuple[int, int] | None:
        """The place of a case among `cases`, and of a network in it; None where the case was not added."""
        for number, entry in enumerate(self.cases):
            if (entry["dataset"], entry["case"]) == (dataset, case):
                return number, [shown["name"] for shown in entry["networks"]].index(network)
        return None


def _described(shown: ShownCase, volumes: CaseVolumes, packed: PackedCase) -> dict[str, Any]:
    """A case in the words and numbers that the script needs; places of the volumes follow from its number."""
    organs = volumes.classes[1:]
    names = [organ_words(organ) for organ in organs]
    return {
        "dataset": shown.dataset,
        "case": shown.case,
        "why": shown.why,
        "organs": names,
        "annotated": [organ in volumes.annotated for organ in organs],
        "colours": list(organ_colours(organs).values()),
        "labels": ["background", *names, "one organ or another"],
        "errors": ["no error", *ERROR_KINDS],
        "luts": {
            "prediction": label_colours(organs),
            "truth": label_colours(organs, light=0.25),
            "errors": _table(ERROR_COLOURS),
        },
        "window": [WINDOW_HU[0] - WINDOW_HU[1] / 2, WINDOW_HU[0] + WINDOW_HU[1] / 2],
        "spacing": [round(size, 2) for size in reversed(packed.spacing_mm)],
        "places": {organ_words(place.organ): place.voxel for place in packed.organs},
        "networks": [
            {
                "name": name,
                "wrong": went_wrong(rows),
                "error": _in_words(packed.errors[name]) if name in packed.errors else None,
            }
            for name, rows in shown.rows.items()
        ],
    }


def _in_words(place: Any) -> dict[str, Any]:
    return {**asdict(place), "organ": organ_words(place.organ)}


def label_colours(organs: tuple[str, ...], light: float = 0.0) -> list[int]:
    """The colours of a label map, as NiiVue takes them.

    Args:
        organs: Names, in the order of their values from 1 on.
        light: Share of white in each colour, 0 to 1.

    Returns:
        Red, green, blue and opacity, 0 to 255, of background, of each organ, and of unknown voxels.

    Example:
        >>> label_colours(("liver",))
        [0, 0, 0, 0, 255, 0, 0, 255, 255, 255, 255, 255]
    """
    return _table([*organ_colours(organs).values(), UNKNOWN_COLOUR], light)


def _table(colours: Sequence[str], light: float = 0.0) -> list[int]:
    table = [0, 0, 0, 0]
    for colour in colours:
        table += [round(255 * ((1 - light) * part + light)) for part in to_rgb(colour)] + [255]
    return table


@functools.cache
def niivue_script() -> str:
    """NiiVue's code from the wheel of ipyniivue, gzipped, in base64.

    Raises:
        DataError: If the wheel does not hold it.
    """
    # The package is found without being imported, which would load Jupyter's machinery.
    found = importlib.util.find_spec("ipyniivue")
    folders = (found.submodule_search_locations if found else None) or ["ipyniivue"]
    script = Path(folders[0]) / "static" / "widget.js"
    if not script.is_file():
        raise DataError(script, "there is no such file", "install ipyniivue again, in the range of setup.py")
    return base64.b64encode(gzip.compress(script.read_bytes(), compresslevel=9, mtime=0)).decode("ascii")


def niivue_version() -> str:
    """The version of ipyniivue that is installed."""
    return importlib.metadata.version("ipyniivue")


def page_parts() -> Mapping[str, Markup]:
    """What goes into the page as it is: scripts and style of the viewer and of the table of cases."""
    files = {"viewer": "viewer.js", "table": "table.js", "style": "viewer.css"}
    folder = Path(__file__).parent
    return {name: Markup((folder / file).read_text(encoding="utf-8")) for name, file in files.items()}
