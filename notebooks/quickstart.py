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
# # Quickstart: from partially labelled scans to a trained, scored network
#
# One dataset draws the liver, another the spleen, a third both kidneys. `partialseg` trains **one** network
# for all organs from all of them. This notebook goes the whole way once, with every step in your hands.
#
# **You will learn**
# - what a *data card* says, and how raw datasets become prepared cases and training patches;
# - that training needs one line beyond plain Keras: `model.compile(loss=PartialSupervision())`;
# - how to train a run, predict a scan, score it against the truth, and look at it.
#
# **Time and hardware**: a minute or two on two CPU cores, with 4 GB of memory. No GPU and no download: the
# scans are phantoms, drawn on the spot in the very layouts in which the real datasets are published. For real
# data the same calls (or the commands named along the way) do the same work.
#
# **What not to expect**: a good network. It trains for seconds here, so what it finds is next to worthless. The
# command `partialseg demo` trains for minutes, and shows what partially labelled data add to a few full labels.

# %%
import partialseg  # first, so that TensorFlow starts with its fast CPU kernels  # isort: skip

import os
import tempfile
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, Markdown
from matplotlib.colors import ListedColormap

from partialseg.data import patches, read_card
from partialseg.data.cards import assign_splits, find_cases
from partialseg.data.classes import PAPER_ORGANS, organ_colours
from partialseg.data.phantom import write_phantom
from partialseg.data.prepare import prepare
from partialseg.data.volumes import read_image, read_label
from partialseg.evaluation import evaluate, organ_table, score
from partialseg.inference.predict import predict
from partialseg.losses import PartialSupervision
from partialseg.models import unet
from partialseg.report.pictures import learning_curves, overlay_picture
from partialseg.training import read_config, train

workplace = tempfile.TemporaryDirectory(prefix="partialseg-")  # goes away with the notebook's kernel
os.chdir(workplace.name)
warnings.filterwarnings("ignore", message='install "ipywidgets"')  # without it, progress bars stay hidden
plt.rcParams.update({"figure.dpi": 72, "font.size": 10})
print("partialseg", partialseg.__version__)

# %% [markdown]
# ## 1. Data cards: what each dataset annotates
#
# A dataset comes with a *data card*: a Markdown file whose front matter tells the program what the files are
# called, what each value of the label maps means, and which organs are annotated. Five cards come with the
# package. BTCV has every organ of the paper (it is *fully annotated*, F); the others have one or two (P1 to
# P4). Where a cell below is empty, the organ is in the scans all the same. Nobody drew it, and its voxels are
# labelled "background".

# %%
cards = [read_card(name) for name in ("btcv", "msd_liver", "msd_spleen", "msd_pancreas", "kits19")]
coverage = {card.name: {organ: "drawn" for organ in card.annotated} for card in cards}
pd.DataFrame(coverage).reindex(PAPER_ORGANS).fillna("")

# %% [markdown]
# KiTS19 shows what a card has to cope with. Its values 1 (kidney) and 2 (tumour) stand for a *set* of organs,
# left or right; with `split_sides` the two are told apart by where they lie.

# %%
kits19 = cards[-1]
print("labels:     ", kits19.labels)
print("split_sides:", kits19.split_sides)
print("exclude:    ", kits19.exclude)
print("licence:    ", kits19.licence)

# %% [markdown]
# ## 2. Raw data: a phantom in five layouts
#
# `write_phantom` (on the command line: `partialseg phantom raw`) draws patients, scans them, and writes the
# files as the real datasets would: folders, names, label values, orientations and all. So what follows does
# not know that they are phantoms. The cases of each dataset are divided into training and test cases by the
# seed in its card.

# %%
folders = write_phantom("raw", preset="tiny", seed=0)
rows = []
for card in cards:
    cases = find_cases(card, "raw")
    splits = assign_splits(card, [case.name for case in cases])
    for case in cases:
        scan = read_image(case.image)
        millimetres = " × ".join(f"{size:.3g}" for size in scan.spacing_mm)
        rows.append((card.name, case.name, splits[case.name], str(case.image), scan.array.shape, millimetres))
pd.DataFrame(rows, columns=["dataset", "case", "split", "image", "shape (z, y, x)", "voxel mm"])

# %% [markdown]
# ## 3. Prepare: one spacing, one orientation, one class list
#
# `prepare` (`partialseg prepare CARD... --raw raw --out prepared`) checks every case against its card and
# resamples it. Each case then holds an image in Hounsfield units and one label map. A broken file would be one
# line in `problems`, with what to do about it, and the others would go on. Called again, it only does what is
# not there yet. The paper's voxels are 3 × 1.5 × 1.5 mm; the tiny phantom is happy with 6 mm.

# %%
result = prepare(cards, "raw", "prepared", spacing_mm=(6.0, 6.0, 6.0), jobs=1)  # by default, one per core
prepared = result.prepared
print(f"{result.done} cases prepared, {len(result.problems)} problems")
print("classes:", ", ".join(prepared.classes))
for case in prepared.cases:
    if case.notes:
        print(f"noticed in {case.dataset}, {case.name}: {'; '.join(case.notes)}")

# %% [markdown]
# The slice with most foreground of a case of BTCV and of a liver case, with what was drawn in them. As on a
# light box, the patient's right is on the left. The liver dataset shows all five organs and names one.

# %%
colours = organ_colours(prepared.organs)
palette = ListedColormap(["none", *colours.values()])
gray = {"cmap": "gray", "vmin": -160, "vmax": 240}  # HU, a window for soft tissue
figure, axes = plt.subplots(1, 4, figsize=(13, 3.4))
for dataset, (plain, drawn) in zip(("btcv", "msd_liver"), axes.reshape(2, 2), strict=True):
    case = prepared.select(dataset, "train")[0]
    image, label = prepared.image(case), prepared.label(case)
    z = np.count_nonzero(label, axis=(1, 2)).argmax()
    for axis in (plain, drawn):
        axis.imshow(image[z, ::-1, ::-1], **gray)
        axis.set_axis_off()
    drawn.imshow(label[z, ::-1, ::-1], cmap=palette, vmin=0, vmax=5, alpha=0.5, interpolation="nearest")
    plain.set_title(f"{dataset}, {case.name}")
    drawn.set_title("annotated")
figure.tight_layout()

# %% [markdown]
# ## 4. Patches: an image, and what each voxel may be
#
# `patches` is an endless `tf.data.Dataset` of batches: datasets mixed evenly, at least a third of the patches
# centred on something annotated. What comes with the image is no label map but the voxels' **candidates**, a
# channel of 0 and 1 for each class: the set of classes that the voxel may be. A liver voxel of the liver
# dataset has one candidate. A background voxel there has five, everything but the liver. That is all the
# losses need to know, so cases of different datasets can share a batch.

# %%
patch_config = {"patch_size": (16, 32, 32), "batch_size": 2, "datasets": ["msd_liver"], "foreground": 1.0}
image, candidates = next(iter(patches(prepared, patch_config)))
print("image:     ", image.shape, image.dtype.name, "in HU")
print("candidates:", candidates.shape, candidates.dtype.name)

middle = image.shape[1] // 2
figure, axes = plt.subplots(1, 7, figsize=(14, 2.5))
axes[0].imshow(image[0, middle, ::-1, ::-1, 0], **gray)
axes[0].set_title("image")
for n, axis in enumerate(axes[1:]):
    axis.imshow(candidates[0, middle, ::-1, ::-1, n], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(f"may be\n{prepared.classes[n].replace('_', ' ')}")
for axis in axes:
    axis.set(xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## 5. The losses are one line of Keras
#
# `unet` is a functional `keras.Model` that takes patches of any size in HU and returns logits.
# `PartialSupervision` is a `keras.losses.Loss`: the sum of the marginal losses (the probability *inside* a
# voxel's set should be 1) and the exclusion losses (the probability *outside* should be 0). On fully annotated
# patches they are the cross-entropy and Dice that you know. Nothing else is special: `compile`, `fit`.

# %%
keras.utils.set_random_seed(0)
model = unet(len(prepared.classes), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), base_channels=4)
model.compile(optimizer=keras.optimizers.Adam(2e-3), loss=PartialSupervision())
history = model.fit(
    patches(prepared, {"patch_size": (16, 32, 32), "batch_size": 2}),
    epochs=3,
    steps_per_epoch=10,
    shuffle=False,  # the patches come shuffled
    verbose=0,
)
print(
    f"{model.count_params():,} weights; loss after each epoch:", np.round(history.history["loss"], 3).tolist()
)

# %% [markdown]
# ## 6. Train a run
#
# For real work, `train` (`partialseg train CONFIG --prepared prepared --out runs/tiny`) does more than `fit`:
# the two stages of the paper (F alone first, then all datasets), every loss term logged for every dataset,
# several GPUs, and a run folder from which an interrupted training goes on. An experiment is a YAML file;
# `tiny`, `demo` and `paper` come with the package.

# %%
config = read_config("tiny")
run = train(config, prepared, "runs/tiny")
print("in the run folder:", ", ".join(sorted(path.name for path in run.folder.iterdir())))
log, terms = pd.read_csv(run.folder / "log.csv"), pd.read_csv(run.folder / "terms.csv")
log.drop(columns="seconds").round(4)

# %% [markdown]
# Its curves, with the marginal (m) and exclusion (e) terms of cross-entropy (CE) and Dice (DC). The dashed line
# is where the second stage begins. BTCV has no exclusion loss: where everything is annotated, there is nothing
# to exclude that the regular losses do not exclude already.

# %%
Image(learning_curves(log, terms))

# %% [markdown]
# ## 7. Predict a scan
#
# `predict` (`partialseg predict runs/tiny INPUT... --out predictions`) takes NIfTI files, folders or DICOM
# series. It slides a window over the scan, and writes a label map in the scan's *own* grid and orientation,
# with a `.json` beside it that names the classes and gives the volume of each organ. With a card it knows the
# cases of a dataset; here, the test case of BTCV.

# %%
btcv = cards[0]
predicted = predict(run, ["raw"], "predictions", card=btcv, split="test", progress=False)
(path,) = predicted.written
prediction = read_label(path)
voxels = np.bincount(prediction.array.ravel(), minlength=len(run.classes))
print("written:", path)
pd.DataFrame(
    {"voxels": voxels, "mL": (voxels * np.prod(prediction.spacing_mm) / 1000).round(1)}, index=run.classes
)

# %% [markdown]
# ## 8. Evaluate
#
# `evaluate` (`partialseg evaluate predictions --truth raw --card btcv --out scores`) compares label maps with
# the truth, over the organs that the dataset annotates and no others. It gives Dice, Hausdorff distances in
# millimetres, the mean surface distance (ASSD) and the surface Dice (NSD). An organ that the network missed
# counts as Dice 0; it is never dropped from a mean.

# %%
evaluated = evaluate("predictions", "raw", btcv, "scores", split="test")
table = organ_table(evaluated.scores)
table[["organ", "dataset", "n", "dice_mean", "hd95_mm_mean", "assd_mm_mean", "nsd_mean", "missed"]].round(2)

# %% [markdown]
# A picture says it as well: filled is the prediction, as an edge the truth. In the right column stands the
# truth itself, which is what one hopes for. After a few dozen steps the network has hardly moved from its random
# beginning, and paints the scan in whatever colours come to mind: a Dice near 0 is all that it deserves.

# %%
case = next(case for case in find_cases(btcv, "raw") if f"{case.name}.nii.gz" == path.name)
scan = read_image(case.image)
truth = read_label(f"raw/truth/btcv/{case.name}.nii.gz").array.astype(np.uint8)
Image(
    overlay_picture(
        scan.array,
        truth,
        {"after some seconds": prediction.array, "perfect": truth},
        scan.spacing_mm,
        run.classes,
    )
)

# %% [markdown]
# For label maps of your own there is `score`, on plain arrays. Here, the truth against itself moved by one
# voxel along x:

# %%
organs = {organ: value for value, organ in enumerate(run.classes) if value}
moved = score(np.roll(truth, 1, axis=2), truth, scan.spacing_mm, organs)
pd.DataFrame(moved).T[["dice", "hd_mm", "hd95_mm", "assd_mm", "outcome"]]

# %% [markdown]
# ## 9. Where to go from here
#
# - **See it learn.** `make demo`, or `partialseg demo`, goes the same way with a larger phantom: two networks
#   with the same budget, one on F alone and one on F and P1 to P4, a table, and an HTML report with pictures.
# - **Understand the losses.** The notebook `marginal_and_exclusion_losses` works them out by hand.
# - **Use real data.** Download a dataset that has a card, then
#   `partialseg check btcv kits19 --raw DIR` reads every case and says what is wrong, and `partialseg prepare`,
#   `train paper`, `predict`, `evaluate` and `report` go on from there.
# - **Bring your own dataset.** Write a card: copy one from `data_cards`, and change its file names, what each
#   value means, and which organs are annotated *wherever they are in the scan*. Below is all of it that the
#   program reads for a dataset of spleens.

# %%
Markdown(
    "```yaml\n" + next(c for c in cards if c.name == "msd_spleen").path.read_text().split("---")[1] + "```"
)
