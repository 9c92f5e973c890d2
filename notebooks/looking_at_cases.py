# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# %% [markdown]
# # Looking at cases: tables, pictures, a report, a 3D/2D viewer
#
# A mean Dice hides what went wrong. This notebook scores predictions case by case, finds the worst ones, and looks at
# them: as pictures, in a report that is one HTML file, and in a viewer that turns and slices them right here.
#
# **You will learn**
# - how `evaluate` scores a folder of label maps, and how to find the cases that need a look;
# - how to read the overlays: filled is the prediction, the edge is the truth;
# - how to write the report, and what its viewer does;
# - how to show a case in a notebook, with `partialseg.report.widget`.
#
# **Time and hardware**: half a minute on one CPU core. No network is trained and nothing is downloaded: the scans are
# phantoms, and the "networks" are the truth, spoiled on purpose, so that we know what there is to find.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from ipyniivue import SliceType
from IPython.display import Image, display

from partialseg.data import read_card
from partialseg.data.cards import find_cases
from partialseg.data.classes import PAPER_ORGANS, class_names
from partialseg.data.phantom import write_phantom
from partialseg.data.volumes import read_label, write_label_map
from partialseg.evaluation import evaluate
from partialseg.report import NetworkResult, choose_cases, overlay_picture, read_case, widget, write_report
from partialseg.report.cases import went_wrong, worst_scores

workplace = tempfile.TemporaryDirectory(prefix="partialseg-")  # goes away with the notebook's kernel
os.chdir(workplace.name)

# %% [markdown]
# ## 1. Two networks that err in known ways
#
# The phantom writes its full truth beside the raw datasets. "Careful" is that truth moved by one voxel. "Careless" has
# lost the pancreas of one case, sees a spleen in the liver of another, and moves everything by three voxels.

# %%
write_phantom("raw", preset="tiny", seed=0)
btcv = read_card("btcv")
cases = find_cases(btcv, "raw")
liver, spleen, pancreas = 1, 2, 3

for number, case in enumerate(cases):
    truth = read_label(f"raw/truth/btcv/{case.name}.nii.gz")
    careful = np.roll(truth.array, 1, axis=1)
    careless = np.roll(truth.array, 3, axis=2)
    if number == 0:
        careless[careless == pancreas] = 0
    if number == 1:
        half = np.arange(careless.shape[0])[:, None, None] > careless.shape[0] // 2
        careless[(careless == liver) & half] = spleen
    for name, labels in {"careful": careful, "careless": careless}.items():
        Path(name).mkdir(exist_ok=True)
        write_label_map(f"{name}/{case.name}.nii.gz", labels, truth)

# %% [markdown]
# ## 2. Scores, and the worst of them
#
# `evaluate` (on the command line: `partialseg evaluate careless --truth raw --card btcv --out scores_careless`, and
# `--classes`) gives a row for each case and organ. Of the mean alone one would not guess that an organ is missing.

# %%
classes = class_names(PAPER_ORGANS)  # what the values mean; `predict` writes a .json that says so
networks = {
    name: evaluate(name, "raw", btcv, f"scores_{name}", classes=classes).scores
    for name in ("careful", "careless")
}
pd.DataFrame({name: scores.groupby("organ")["dice"].mean() for name, scores in networks.items()}).round(3)

# %% [markdown]
# `worst_scores` lists the lowest over all networks, cases and organs. "missed": the truth has the organ, the
# prediction has nothing of it, which counts as Dice 0.

# %%
worst_scores(networks, count=5).round(2)

# %% [markdown]
# ## 3. Pictures
#
# `choose_cases` picks what a report shows: of each dataset the typical case and the worst, then the lowest scores.
# `read_case` reads scan, truth and predictions again, on one grid.

# %%
chosen = choose_cases(networks)
for shown in chosen:
    print(f"{shown.case}: {shown.why}. Careless: {went_wrong(shown.rows['careless'])}")

# %%
shown = next(shown for shown in chosen if "missed" in went_wrong(shown.rows["careless"]))
case = read_case(shown)
Image(overlay_picture(case.image, case.truth, case.predictions, case.spacing_mm, case.classes, case.unknown))

# %% [markdown]
# A column for each network; filled is the prediction, the edge is the truth, and the patient's right is at the left. In
# the right column an edge without a filling is the pancreas that is not there.
#
# ## 4. The report
#
# `write_report` (`partialseg report DIR`) puts all of it into one HTML file: tables, pictures, a table of all cases
# with the worst first, and a viewer. It opens from disk, without a network, and can be mailed as it is.

# %%
report = write_report(
    "report.html", "Careful and careless", {name: NetworkResult(scores) for name, scores in networks.items()}
)
text = report.read_text(encoding="utf-8")
print(f"{report}: {len(text) / 1e6:.1f} MB, of which the viewer's code is 2 MB")
print("rows, of all cases and of the lowest scores, that open the viewer:", text.count("<tr data-shown="))

# %% [markdown]
# In a browser, a click on a row of that table shows the case: three planes or a surface in 3D, each layer with a box
# to tick, the wheel to go through slices, and buttons that lead to each organ and to the largest error.
#
# ## 5. The viewer, here
#
# `widget` shows a case in the notebook: the scan, the truth as edges, one network's prediction filled. It is the
# widget of `ipyniivue`, so everything in its documentation works on it. (Run the cell to see it: a notebook on a web
# page holds no volumes.)

# %%
view = widget(case, network="careless")
display(view)

# %% [markdown]
# It can be changed from Python while you look at it. The next cell leaves the prediction alone, and turns the widget
# above into its surface: a label map at the back, without a scan, is lit by its shape.

# %%
view.volumes = view.volumes[2:]
view.volumes[0].opacity = 1.0
view.set_volume_render_illumination(0.6)
view.set_slice_type(SliceType.RENDER)

# %% [markdown]
# ## 6. Where to go from here
#
# - The notebook `quickstart` trains a network and scores it; `partialseg report RUN` then reports on the run.
# - `partialseg report DIR` takes what `evaluate` wrote, too, without a run: predictions of any program can be looked
#   at, if `classes` or a `.json` beside each says what their values mean.
