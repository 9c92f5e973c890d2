"""How KiTS19's kidneys are split into left and right, to keep in results/kits19_sides.md.

    python benchmarks/kits19_sides.py FOLDER

FOLDER holds KiTS19's label maps, `case_*.nii.gz` (or `case_*/segmentation.nii.gz`). About 2 s for each map.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from partialseg.data.sides import MAIN_PART, split_left_right

HEADER = [
    *("case", "flag", "left, mL", "right, mL", "unsure, mL", "components", "specks", "specks, mL"),
    *("x left, mm", "x right, mm", "apart, mm", "in between", "left higher by, mm"),
]
NOTES = """
- The label map holds kidneys and tumours of both sides alike; world x grows toward the patient's right, so the left
  kidney has the smaller x. Components: those above {part:.0%} of the largest; specks: the others, and what is in them.
- x left, x right: world x of the centres. In between: whether the middle of the scan's field of view, which is about
  where the spine is, lies between the two centres. Left higher: most left kidneys lie a little higher than the right
  ones, which are below the liver. The split uses neither.
- Unsure: voxels in neither. All of a map that is not split keeps the set of both kidneys.
"""


def row(path: Path) -> list[str]:
    file = nib.load(path)
    mask = np.asanyarray(file.dataobj) > 0
    left, right, flag = split_left_right(mask, file.affine)
    voxel_ml = abs(np.linalg.det(file.affine[:3, :3])) / 1000
    components, count = ndimage.label(mask)
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    specks = sizes[sizes < MAIN_PART * sizes.max()]
    volumes = [np.count_nonzero(side) * voxel_ml for side in (left, right, mask & ~left & ~right)]
    cells = [flag, *(f"{volume:.1f}" for volume in volumes), str(count - len(specks)), str(len(specks))]
    cells.append(f"{specks.sum() * voxel_ml:.2f}")
    name = path.name.split(".")[0] if path.name.startswith("case") else path.parent.name
    return [name, *cells, *places(left, right, file.affine)]


def places(left: np.ndarray, right: np.ndarray, affine: np.ndarray) -> list[str]:
    """World x of the two centres, how far they are apart, and what does not depend on the split."""
    if not left.any():
        return [""] * 5
    centres = [affine[:3, :3] @ ndimage.center_of_mass(side) + affine[:3, 3] for side in (left, right)]
    middle = affine[0, :3] @ ((np.array(left.shape) - 1) / 2) + affine[0, 3]
    x_left, x_right = (centre[0] for centre in centres)
    between = "yes" if x_left < middle < x_right else "no"
    apart = np.linalg.norm(np.subtract(*centres))
    return [
        f"{x_left:.0f}",
        f"{x_right:.0f}",
        f"{apart:.0f}",
        between,
        f"{centres[0][2] - centres[1][2]:+.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    paths = sorted([*folder.glob("case_*.nii.gz"), *folder.glob("case_*/segmentation.nii.gz")])
    print("# Left and right of KiTS19's kidneys\n\n```\npython benchmarks/kits19_sides.py FOLDER\n```")
    print(NOTES.format(part=MAIN_PART))
    for cells in (HEADER, ["---"] * len(HEADER)):
        print("| " + " | ".join(cells) + " |")
    for path in paths:
        print("| " + " | ".join(row(path)) + " |", flush=True)


if __name__ == "__main__":
    main()
