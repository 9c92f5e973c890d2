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
# # Patches: which are drawn, and what augmentation does to them
#
# A network trains on patches, and two choices decide what it sees: **which** patches are drawn from datasets of
# very different sizes, and **how** they are changed at random.
#
# **You will learn**
# - how the share of each dataset is set, and that it is kept exactly, epoch by epoch;
# - how a stream of patches is saved in the middle of an epoch and goes on, and is shared among workers;
# - what every transform does, on the image and on the candidates, and why a mirror has to know left from right.
#
# **Time and hardware**: under a minute on two CPU cores. No GPU and no download: the scans are phantoms.

# %%
import partialseg  # first, so that TensorFlow starts with its fast CPU kernels  # isort: skip

import os
import tempfile
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from partialseg.data import AugmentationConfig, PatchConfig, PatchPlan, patches, read_card
from partialseg.data.classes import organ_colours
from partialseg.data.patch_reading import PatchReader
from partialseg.data.phantom import write_phantom
from partialseg.data.prepare import prepare

workplace = tempfile.TemporaryDirectory(prefix="partialseg-")  # goes away with the notebook's kernel
os.chdir(workplace.name)
print("partialseg", partialseg.__version__)
warnings.filterwarnings("ignore", message='install "ipywidgets"')
plt.rcParams.update({"figure.dpi": 72, "font.size": 10})

cards = [read_card(name) for name in ("btcv", "msd_liver", "msd_spleen", "msd_pancreas", "kits19")]
write_phantom("raw", preset="tiny", seed=0)
prepared = prepare(cards, "raw", "prepared", spacing_mm=(6.0, 4.0, 4.0), jobs=1).prepared
num_cases = {name: len(prepared.select(name, "train")) for name in prepared.datasets}
pd.Series(num_cases, name="training cases").to_frame()

# %% [markdown]
# ## 1. Which patches are drawn
#
# `mix` says how much of an epoch each dataset gives: the paper takes as many patches of each (`equal`);
# `proportional` takes as many of each case; with `inverse_sqrt` a dataset of n cases counts √n. The numbers are exact
# in every epoch, not only on the mean: what does not divide evenly is made up for in the next ones. A training with
# two stages may have a mix for each (`mix:` in the config's stages).

# %%
rows = {}
for mix in ("equal", "proportional", "inverse_sqrt"):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(16, 48, 48), batches_per_epoch=101, mix=mix))
    for epoch in range(2):
        rows[mix, f"epoch {epoch}"] = plan.quotas(epoch)
pd.DataFrame(rows).transpose()

# %% [markdown]
# Of every batch, at least 33% of the patches are centred on annotated foreground: at batch 2 one of the two. The organ
# is chosen evenly among those that the case has, then one of its voxels, from a list that was stored when the case was
# prepared.

# %%
plan = PatchPlan(prepared, PatchConfig(patch_size=(16, 48, 48), batch_size=2))
centred_on = pd.Series(
    [
        prepared.classes[draw.forced_value]
        if draw.forced_value < len(prepared.classes)
        else "left or right kidney"
        for index in range(250)
        for draw in plan.batch(index)
        if draw.forced_value is not None
    ],
    name="patches centred on it, in 250 batches",
)
centred_on.value_counts().to_frame()

# %% [markdown]
# ## 2. A stream that can be stopped, and shared
#
# What batch 7 holds depends on the seed and on 7, and on nothing else: neither on how many batches are read at the same
# time, nor on what was drawn before. So a training that was killed goes on in the middle of an epoch, and each of
# several workers reads its own part of every batch.

# %%
config = PatchConfig(patch_size=(16, 48, 48), batch_size=2, augmentation=AugmentationConfig(), workers=2)
whole = list(patches(prepared, config).take(9))
state = PatchPlan(prepared, config).state(batch=7)  # JSON, with a fingerprint of config and cases
resumed = next(iter(patches(prepared, config, start_batch=state)))
second_worker = next(iter(patches(prepared, config, start_batch=7, shard=(1, 2))))
print("goes on at batch 7:", np.array_equal(whole[7][0], resumed[0]))
print("worker 2 of 2 reads the second half of it:", np.array_equal(whole[7][0][1:], second_worker[0]))

# %% [markdown]
# ## 3. What augmentation does
#
# The transforms and their probabilities are those of nnU-Net's trainer. Each is shown here alone and at full strength,
# on one patch of the fully annotated dataset. Below every image are its candidates: organs in their colours,
# background black, and **light grey where a voxel lies outside the field of view**. There every class is possible: such
# voxels are ignored by all losses, instead of being taught as background.

# %%
SIZE = (16, 64, 80)
NEVER = {"probability": 0, "range": (1, 1)}
TRANSFORMS = {
    "rotation": (30, 30),
    "scaling": (1.4, 1.4),
    "noise": (0.1, 0.1),
    "blur": (1, 1),
    "brightness": (1.25, 1.25),
    "contrast": (0.75, 0.75),
    "low_resolution": (0.5, 0.5),
    "inverted_gamma": (1.5, 1.5),
    "gamma": (1.5, 1.5),
}


def only(name=None, mirror=()):
    """A config of which one transform always happens, or a mirror."""
    sections = dict.fromkeys(TRANSFORMS, NEVER)
    if name is not None:
        sections[name] = {"probability": 1, "range": TRANSFORMS[name]}
    return AugmentationConfig(**sections, mirror={"probability": float(bool(mirror)), "axes": mirror})


def read(draw, augmentation, key=(0, 0)):
    image = np.empty(SIZE, np.float32)
    candidates = np.empty((*SIZE, len(prepared.classes)), np.uint8)
    PatchReader(prepared, SIZE, augmentation).read(draw, key, image, candidates)
    return image, candidates


colours = organ_colours(prepared.organs)
palette = ListedColormap(["black", *colours.values(), "dimgray", "lightgray"])
MERGED, IGNORED = len(prepared.classes), len(prepared.classes) + 1


def show(axes, draw, augmentation, title, key=(0, 0)):
    """The middle slice, as on a light box: the patient's right is on the left."""
    image, candidates = read(draw, augmentation, key)
    number = candidates.sum(axis=-1)
    shown = np.where(
        number == 1, candidates.argmax(axis=-1), np.where(number == len(prepared.classes), IGNORED, MERGED)
    )
    z = SIZE[0] // 2
    axes[0].imshow(image[z, ::-1, ::-1], cmap="gray", vmin=-200, vmax=300)
    axes[1].imshow(shown[z, ::-1, ::-1], cmap=palette, vmin=-0.5, vmax=IGNORED + 0.5, interpolation="nearest")
    axes[0].set_title(title)
    for axis in axes:
        axis.set_axis_off()


def legend(figure, extra=()):
    handles = [Patch(color=colour, label=name.replace("_", " ")) for name, colour in colours.items()]
    handles += [Patch(color=colour, label=label) for colour, label in extra]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


right_kidney = prepared.classes.index("right_kidney")
case = next(
    case for case in prepared.select("btcv", "train") if right_kidney in [part[0] for part in case.foreground]
)
plan = PatchPlan(prepared, PatchConfig(patch_size=SIZE, datasets=["btcv"], foreground=1))
draw = next(d for index in range(99) for d in plan.batch(index) if d.forced_value == right_kidney)

titles = {None: "as it is", **{name: name.replace("_", " ") for name in TRANSFORMS}}
figure, axes = plt.subplots(4, 5, figsize=(13, 8.6), layout="constrained")
for number, (name, title) in enumerate(titles.items()):
    show(axes[2 * (number // 5) : 2 * (number // 5) + 2, number % 5], draw, only(name), title)
legend(figure, [("lightgray", "outside: ignored")])
plt.show()

# %% [markdown]
# Turning and scaling interpolate the image linearly. Labels are put to the vote: the candidates of a voxel are those of
# the label with most weight around it, so that candidates of different labels never mix. The voxel on which a patch is
# centred stays in it, whatever is done, so the 33% of foreground hold after augmentation too.
#
# ## 4. A mirror that knows left from right
#
# Mirrored along x, a left kidney looks like a right one. Taught as "left" all the same, it would tell the network that
# sides mean nothing. So the columns of paired organs are exchanged: what lies on the patient's right is called right,
# before and after. Look at the two kidneys: mirrored, yet cyan stays on the left of the picture.

# %%
figure, axes = plt.subplots(2, 4, figsize=(13, 4.8), layout="constrained")
for column, (axis, title) in enumerate(
    {"": "as it is", "x": "along x", "y": "along y", "z": "along z"}.items()
):
    show(axes[:, column], draw, only(mirror=tuple(axis)), title)
legend(figure)
plt.show()

# %% [markdown]
# ## 5. All together, as in training
#
# Patches of all five datasets with the default augmentation. In a partially annotated dataset most voxels may be
# several classes (dark grey): whatever is not drawn may be background or any organ that the dataset does not annotate.
# `partialseg inspect PREPARED --config CONFIG` makes such pictures of what a training really draws, with the numbers.

# %%
plan = PatchPlan(prepared, PatchConfig(patch_size=SIZE, foreground=1, seed=3))
firsts = {}
for index in range(40):
    for slot, one in enumerate(plan.batch(index)):
        firsts.setdefault(one.case.dataset, (one, (index, slot)))
figure, axes = plt.subplots(2, 5, figsize=(13, 4.8), layout="constrained")
for column, (dataset, (one, key)) in enumerate(sorted(firsts.items())):
    show(axes[:, column], one, AugmentationConfig(), dataset, key)
legend(figure, [("dimgray", "may be several classes"), ("lightgray", "ignored")])
plt.show()
