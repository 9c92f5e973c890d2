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
# # The marginal and exclusion losses by hand
#
# A scan from a liver dataset has its liver drawn and nothing else. Its "background" holds a spleen, a pancreas
# and two kidneys that nobody marked. How can one network learn all organs from such scans?
#
# **You will learn**
# - what a *candidate set* is, and why it is the only thing the losses need to know about a dataset;
# - how equations 4 to 11 of Shi et al. (Medical Image Analysis 2021) work, on numbers small enough for a pencil;
# - why adding up logits is another loss than adding up probabilities;
# - what goes wrong without these losses: a picture of a network that forgets.
#
# **Time and hardware**: reading 20 minutes, running half a minute on two CPU cores. No data is needed: all
# numbers are made here.

# %%
import partialseg  # first, so that TensorFlow starts with its fast CPU kernels  # isort: skip

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.colors import ListedColormap
from matplotlib.patches import Circle, Ellipse, FancyBboxPatch

from partialseg.data import candidate_table, candidates
from partialseg.data.classes import PAPER_ORGANS, class_names, organ_colours
from partialseg.losses import (
    ExclusionCrossEntropy,
    ExclusionDice,
    MarginalCrossEntropy,
    MarginalDice,
    PartialSupervision,
)

plt.rcParams.update({"figure.dpi": 72, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
CLASSES = class_names(PAPER_ORGANS)
NAMES = [name.replace("_", " ") for name in CLASSES]
COLOURS = ["#d9d9d9", *organ_colours(PAPER_ORGANS).values()]
print("partialseg", partialseg.__version__, "- classes:", ", ".join(NAMES))

# %% [markdown]
# ## 1. Candidates: what a voxel may be
#
# Every voxel carries the set of classes that it may be, as zeros and ones. In a dataset that annotates the
# liver alone there are two kinds of voxel: *liver*, and *anything but liver*. A third kind, *ignored*, is for
# voxels that nobody looked at: all classes are possible, and nothing is learned there. The table of a dataset
# says which set each of its label values stands for.

# %%
liver_only = candidate_table(CLASSES, annotated=["liver"])
everything = candidate_table(CLASSES, annotated=PAPER_ORGANS)
rows = {
    "background (liver dataset)": liver_only[0],
    "liver": liver_only[1],
    "ignored": liver_only[len(CLASSES)],
}
rows["background (all annotated)"] = everything[0]
pd.DataFrame(rows, index=NAMES).T  # noqa: B018

# %% [markdown]
# The same as a picture: a made-up slice (front at the top, the patient's right on the left, as on a light
# box), what the liver dataset says about it, and the six channels of its candidates. Every voxel outside the
# liver is white in five channels: it may be any of those five.


# %%
def draw_slice():
    """A made-up axial slice of label values (y, x), front at the top, the patient's right on the left."""
    y, x = np.mgrid[0:96, 0:128]
    label = np.zeros(y.shape, int)
    for value, (cy, cx, ry, rx) in [(1, (40, 38, 24, 28)), (2, (48, 103, 17, 9)), (3, (46, 70, 6, 20))]:
        label[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = value
    for value, (cy, cx) in [(4, (70, 88)), (5, (72, 42))]:
        label[((y - cy) / 10) ** 2 + ((x - cx) / 8) ** 2 < 1] = value
    body = ((y - 48) / 44) ** 2 + ((x - 64) / 60) ** 2 < 1
    return label, body


truth, body = draw_slice()
liver_label = np.where(truth == 1, 1, 0)  # what the liver dataset draws
sets = candidates(liver_label, liver_only)

figure, axes = plt.subplots(2, 4, figsize=(13, 5.8))
shown = {
    "colormap": ListedColormap(["black", *COLOURS]),
    "kinds": ListedColormap(["black", "#a0522d", COLOURS[1]]),
}
axes[0, 0].imshow(
    np.where(body, truth + 1, 0), cmap=shown["colormap"], vmin=0, vmax=6, interpolation="nearest"
)
axes[0, 0].set_title("what is there")
axes[1, 0].imshow(
    np.where(body, liver_label + 1, 0), cmap=shown["kinds"], vmin=0, vmax=2, interpolation="nearest"
)
axes[1, 0].set_title("what the liver dataset says")
for n, axis in enumerate(axes[:, 1:].flat):
    axis.imshow(sets[..., n], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(f"may be {NAMES[n]}")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="gray")
figure.tight_layout(h_pad=1.5)

# %% [markdown]
# ## 2. Merging adds up probabilities (eq. 4, Fig. 2)
#
# Classes that a dataset does not tell apart are *merged*. Below, a dataset tells $\{C_1, C_2\}$ from
# $\{C_3, C_4\}$ and no more. The probability of a merged class is the sum over its members,
# $q_m = \sum_{n \in \Phi_m} p_n$, the area of both parts of the ellipse together.

# %%
p_four = np.array([0.40, 0.25, 0.30, 0.05])
tints = ["#9ecae1", "#4292c6", "#fdae6b", "#e6550d"]
figure, axis = plt.subplots(figsize=(9, 3.4))
for m, (centre, outline) in enumerate([(2.2, "#08519c"), (7.0, "#a63603")]):
    axis.add_patch(Ellipse((centre, 2.2), 4.3, 2.5, facecolor="none", edgecolor=outline, linewidth=2.5))
    q = p_four[2 * m : 2 * m + 2].sum()
    axis.text(
        centre, 3.6, f"$C'_{m + 1} = C_{2 * m + 1} \\cup C_{2 * m + 2}$", ha="center", color=outline, size=13
    )
    axis.text(
        centre,
        0.45,
        f"$q_{m + 1} = {p_four[2 * m]:.2f} + {p_four[2 * m + 1]:.2f} = {q:.2f}$",
        ha="center",
        size=13,
    )
    for n, x in [(2 * m, centre - 0.95), (2 * m + 1, centre + 0.95)]:
        axis.add_patch(Circle((x, 2.2), 0.85, facecolor=tints[n], edgecolor="none"))
        axis.text(x, 2.2, f"$C_{n + 1}$\n{p_four[n]:.2f}", ha="center", va="center")
axis.set(
    xlim=(-0.2, 9.4), ylim=(0, 4.2), aspect="equal", title="Merging four classes into two (after Fig. 2)"
)
axis.set_axis_off()

# %% [markdown]
# Now six logits of one voxel. The network is sure that it sees spleen, and the scan comes from the liver
# dataset, so spleen lies inside the merged background: the network cannot be wrong.
#
# Adding up the *logits* of the merged classes instead (and taking the softmax of the two numbers) looks alike
# but is another loss. The five logits 8, -2, -4, -4 and -4 add up to -6, below the -3 of the liver, so a
# perfect prediction would be punished.

# %%
logits = np.array([-2.0, -3.0, 8.0, -4.0, -4.0, -4.0])
p = np.exp(logits) / np.exp(logits).sum()  # eq. 1
background = liver_only[0] == 1
q = p[background].sum()  # eq. 4

summed = np.array([logits[background].sum(), logits[1]])
wrong_q = np.exp(summed[0]) / np.exp(summed).sum()
print("p              =", dict(zip(NAMES, p.round(6).tolist(), strict=True)))
print(f"q of the merged background, probabilities added: {q:.5f}, -log q = {-np.log(q):.5f}")
print(f"               the other loss, with logits added: {wrong_q:.3f},   -log   = {-np.log(wrong_q):.3f}")
print(f"MarginalCrossEntropy: {float(MarginalCrossEntropy()(liver_only[:1], logits[None])):.5f}")

# %% [markdown]
# ## 3. Marginal cross-entropy and its gradient (eq. 5, 7, 8)
#
# $L_{mCE} = -\log q$ of the voxel's own set. Its gradient with respect to logit $j$ is $p_j (1 - 1/q)$ inside
# the set and $p_j$ outside. (The text under eq. 8 calls $\bar m$ the class with $\pi_j = 0$; it must be the one
# with $\pi_j = 1$.) Inside the set, every class is pulled up in proportion to the probability it has already:
# the loss does not care *which* member wins. We check this by automatic differentiation.


# %%
def gradient_of(loss, y_true, y_pred):
    """Gradient of a loss with respect to the predictions, by automatic differentiation."""
    y_pred = tf.convert_to_tensor(y_pred, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        value = loss(y_true, y_pred)
    return tape.gradient(value, y_pred).numpy()


unsure = np.array([0.5, 1.0, 0.8, -0.5, 0.0, -1.0])
p = np.exp(unsure) / np.exp(unsure).sum()
q = p[background].sum()
by_hand = np.where(background, p * (1 - 1 / q), p)
automatic = gradient_of(MarginalCrossEntropy(), liver_only[:1], unsure[None])[0]
pd.DataFrame(
    {"p": p, "eq. 8": by_hand, "automatic": automatic, "difference": automatic - by_hand}, NAMES
).round(6)

# %% [markdown]
# Two ends of the scale: with a single candidate this is plain cross-entropy, and with all classes as
# candidates it is zero with zero gradient.

# %%
liver_voxel, ignored_voxel = everything[1:2], liver_only[len(CLASSES)][None]
plain = keras.losses.CategoricalCrossentropy(from_logits=True)
for name, voxel in [("liver", liver_voxel), ("ignored", ignored_voxel)]:
    value = float(MarginalCrossEntropy()(voxel, unsure[None]))
    steepest = np.abs(gradient_of(MarginalCrossEntropy(), voxel, unsure[None])).max()
    print(f"{name:8s} marginal {value:.6f}   largest gradient {steepest:.6f}")
print(f"plain cross-entropy of the liver voxel: {float(plain(liver_voxel, unsure[None])):.6f}")

# %% [markdown]
# ## 4. Marginal Dice on four voxels (eq. 6)
#
# From here on three classes (background, liver, spleen) and a line of four voxels: background, liver, liver,
# spleen. Only the liver is annotated, so the first and the last voxel have the set {background, spleen}.
# The probabilities are round numbers, so that you can follow with a pencil.

# %%
THREE = ("background", "liver", "spleen")
liver_of_three = candidate_table(THREE, annotated=["liver"])
line_truth = np.array([0, 1, 1, 2])
line_sets = candidates(np.where(line_truth == 1, 1, 0), liver_of_three)[None]
line_p = np.array([[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.1, 0.1, 0.8]]])

voxels = [f"voxel {v} ({THREE[n]})" for v, n in enumerate(line_truth)]
table = pd.DataFrame(line_p[0], voxels, [f"p {name}" for name in THREE])
table["candidates"] = [
    " or ".join(name for name, may in zip(THREE, s, strict=True) if may) for s in line_sets[0]
]
table["q"] = (line_p * line_sets).sum(axis=-1)[0]
table  # noqa: B018

# %% [markdown]
# In this sample background and spleen are merged, so there are two classes, not three:
#
# | merged class | $\sum z\,q$ | $\sum z$ | $\sum q$ | Dice $= 2\sum zq / (\sum z + \sum q)$ |
# |---|---|---|---|---|
# | background or spleen | 0.9 + 0.9 = 1.8 | 2 | 0.9 + 0.3 + 0.4 + 0.9 = 2.5 | 3.6 / 4.5 = 0.8 |
# | liver | 0.7 + 0.6 = 1.3 | 2 | 0.1 + 0.7 + 0.6 + 0.1 = 1.5 | 2.6 / 3.5 = 0.7429 |
#
# The paper adds up one minus Dice over the classes. The default here is the mean over the merged classes, so
# that a fully annotated scan (six classes) does not weigh three times a scan with one organ (two).

# %%
hand = np.array([1 - 3.6 / 4.5, 1 - 2.6 / 3.5])
for class_reduction, expected in [("sum", hand.sum()), ("mean", hand.mean())]:
    value = MarginalDice(from_logits=False, class_reduction=class_reduction)(line_sets, line_p)
    print(f"{class_reduction:4s}  by hand {expected:.6f}   MarginalDice {float(value):.6f}")
hand = -np.log([0.9, 0.7, 0.6, 0.9]).mean()
value = MarginalCrossEntropy(from_logits=False)(line_sets, line_p)
print(f"eq. 5 by hand {hand:.6f}   MarginalCrossEntropy {float(value):.6f}")

# %% [markdown]
# ## 5. Exclusion: what a voxel cannot be (eq. 9, Fig. 3)
#
# Organs do not overlap. So a voxel of $C_2$ or $C_3$ says: not $C_1$. The exclusion set of a class is the
# union of what excludes it; in terms of candidates, $e$ is simply the complement of the voxel's set.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=[1, 1.15])
for n, (x, y) in enumerate([(0.9, 1.75), (4.1, 2.6), (4.6, 0.9)]):
    left.add_patch(Circle((x, y), 0.8, facecolor=tints[1] if n == 0 else tints[2], edgecolor="none"))
    left.text(x, y, f"$C_{n + 1}$", ha="center", va="center", size=15)
outline = FancyBboxPatch((3.2, -0.02), 2.4, 3.55, boxstyle="round,pad=0.1", fill=False, linewidth=2.5)
outline.set(edgecolor="#a63603", linestyle="--")
left.add_patch(outline)
left.text(5.9, 1.75, "$E_{C_1} = C_2 \\cup C_3$", color="#a63603", va="center", size=14)
arrow = {"arrowstyle": "-|>", "color": "#a63603", "linewidth": 2}
left.annotate("", (1.75, 1.75), (3.05, 1.75), arrowprops=arrow)
left.text(2.4, 1.9, "not $C_1$", color="#a63603", ha="center", size=12)
left.set(xlim=(0, 8.2), ylim=(-0.3, 3.8), aspect="equal", title="Mutually exclusive classes (after Fig. 3)")
left.set_axis_off()

line_excluded = 1 - line_sets[0]
right.imshow(line_excluded.T, cmap=ListedColormap(["#f7f7f7", tints[2]]), aspect="auto")
for v, n in np.ndindex(*line_excluded.shape):
    right.text(v, n, f"e = {line_excluded[v, n]}\np = {line_p[0, v, n]:.1f}", ha="center", va="center")
right.set_xticks(range(4), ["background\nor spleen", "liver", "liver", "background\nor spleen"])
right.set_yticks(range(3), THREE)
right.set_title("exclusion sets of the line of four voxels")
right.tick_params(length=0)
figure.tight_layout()

# %% [markdown]
# Read literally, eq. 9 adds up the labels of *annotated* organs, so merged background excludes nothing. In the
# paper's code it does exclude the liver, which is right, since it cannot be liver. That is the default here;
# `merged_background_excludes=False` gives the literal reading.
#
# ## 6. Exclusion Dice and exclusion cross-entropy (eq. 10, 11)
#
# Exclusion Dice is an overlap to be made *small*: $2\sum e\,p / (\sum e + \sum p)$ per class.
#
# | class | $\sum e\,p$ | $\sum e$ | $\sum p$ | |
# |---|---|---|---|---|
# | background | 0.2 + 0.1 | 2 | 1.2 | 0.6 / 3.2 = 0.1875 |
# | liver | 0.1 + 0.1 | 2 | 1.5 | 0.4 / 3.5 = 0.1143 |
# | spleen | 0.1 + 0.3 | 2 | 1.3 | 0.8 / 3.3 = 0.2424 |
#
# Exclusion cross-entropy adds up $e \log(p + \epsilon)$ over the classes and takes the mean over the voxels.

# %%
hand = 0.6 / 3.2 + 0.4 / 3.5 + 0.8 / 3.3
value = ExclusionDice(from_logits=False, class_reduction="sum")(line_sets, line_p)
print(f"eq. 10 by hand {hand:.6f}   ExclusionDice {float(value):.6f}")
hand = np.log([1.1, 1.2 * 1.1, 1.1 * 1.3, 1.1]).mean()
value = ExclusionCrossEntropy(from_logits=False)(line_sets, line_p)
print(f"eq. 11 by hand {hand:.6f}   ExclusionCrossEntropy {float(value):.6f}")

# %% [markdown]
# Why is $\epsilon = 1$, of all numbers? The loss is smallest where the excluded class has no probability, and
# there $\log(p + \epsilon)$ with a small $\epsilon$ falls off a cliff: its slope at 0 is $1/\epsilon$, and the
# network would spend itself on pushing probabilities from 0.001 to 0.0001. With $\epsilon = 1$ the term lies
# between 0 and $\log 2$, its slope between 1 and 1/2.

# %%
grid = np.linspace(0, 1, 400)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2))
for epsilon, colour in [(1, "#08519c"), (0.1, "#fdae6b"), (0.001, "#e6550d")]:
    left.plot(grid, np.log(grid + epsilon), color=colour, label=f"$\\epsilon$ = {epsilon:g}")
    right.semilogy(grid, 1 / (grid + epsilon), color=colour)
left.axhline(np.log(2), color="gray", linestyle=":", linewidth=1)
left.text(0.02, np.log(2) + 0.15, "log 2", color="gray")
left.set(xlabel="probability of an excluded class", title="$\\log(p + \\epsilon)$")
right.set(xlabel="probability of an excluded class", title="its slope $1/(p + \\epsilon)$")
left.legend(frameon=False, loc="lower right")
figure.tight_layout()

# %% [markdown]
# ## 7. The sum, and its weights
#
# `PartialSupervision` computes all four terms from one softmax and weighs marginal : exclusion = 1 : 2, the
# best of the paper's Table 5. It needs no dataset number: the candidates say all. Here is one batch of three
# samples with the same prediction: fully annotated, liver only, and wholly ignored. A fully annotated sample
# has regular losses alone, as in the paper, so its exclusion terms are zero.

# %%
mixed_sets = np.stack([np.eye(3)[line_truth], line_sets[0], np.ones((4, 3))])
mixed_p = np.repeat(line_p, 3, axis=0)
loss = PartialSupervision(from_logits=False, reduction="none")
values = pd.DataFrame(
    {term: value.numpy() for term, value in loss.values(mixed_sets, mixed_p).items()},
    index=["fully annotated", "liver only", "ignored"],
)
values["1 (mCE + mDC) + 2 (eCE + eDC)"] = values.mCE + values.mDC + 2 * (values.eCE + values.eDC)
values["PartialSupervision"] = loss(mixed_sets, mixed_p).numpy()
values.round(4)

# %% [markdown]
# What do the exclusion terms add, where the marginal ones already say "liver"? Let the spleen grow inside the
# two liver voxels, at the expense of the liver. Marginal cross-entropy rises slowly and then beyond all bounds
# (to avoid such large values, the paper trains on fully annotated scans first). Exclusion Dice is the steepest
# of the four where the share of spleen is small, which is where the last mistakes are, and both exclusion
# terms stay bounded.

# %%
shares = np.linspace(0, 0.98, 50)
curves = []
for share in shares:
    prediction = np.array([[[1, 0, 0], [0, 1 - share, share], [0, 1 - share, share], [0, 0, 1]]])
    terms = PartialSupervision(from_logits=False, class_reduction="sum").values(line_sets, prediction)
    curves.append([float(value[0]) for value in terms.values()])
figure, axis = plt.subplots(figsize=(7, 3.4))
names = ["marginal CE (eq. 5)", "marginal Dice (eq. 6)", "exclusion CE (eq. 11)", "exclusion Dice (eq. 10)"]
for curve, name, colour, style in zip(
    np.transpose(curves),
    names,
    ["#08519c", "#4292c6", "#a63603", "#fdae6b"],
    ["-", "--", "-", "--"],
    strict=True,
):
    axis.plot(shares, curve, style, color=colour, label=name)
axis.set(xlabel="probability of spleen in the liver voxels", ylabel="loss (sum over classes)")
axis.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## 8. The network that forgets
#
# Take a network that has learned all organs fairly well, and go on training it on scans of the liver dataset.
# Without the losses above, one would call everything outside the liver background. To see what this does we
# need no network: the logits of the slice of section 1 are our variables, they start with about 70%
# probability for the right class, and gradient descent changes them.


# %%
def descend(loss, y_true, start, steps=60, rate=3e3):
    """Gradient descent on the logits themselves; returns the probabilities reached."""
    variable = tf.Variable(start)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss(y_true, variable)
        variable.assign_sub(rate * tape.gradient(value, variable))

    for _ in range(steps):
        step()
    return keras.ops.softmax(variable).numpy()[0]


noise = np.random.default_rng(0).normal(0, 0.4, (1, *truth.shape, len(CLASSES)))
start = (2.5 * np.eye(len(CLASSES))[truth][None] + noise).astype("float32")
liver_or_background = np.eye(len(CLASSES), dtype="float32")[liver_label][None]
plain = keras.losses.CategoricalCrossentropy(from_logits=True)
results = {
    "before": keras.ops.softmax(start).numpy()[0],
    "plain cross-entropy": descend(plain, liver_or_background, start),
    "PartialSupervision": descend(PartialSupervision(), sets[None].astype("float32"), start),
}

# %%
figure, axes = plt.subplots(1, 4, figsize=(14, 2.9))
axes[0].imshow(np.where(body, truth + 1, 0), cmap=shown["colormap"], vmin=0, vmax=6, interpolation="nearest")
axes[0].set_title("truth")
for axis, (name, probability) in zip(axes[1:], results.items(), strict=True):
    found = np.where(body, probability.argmax(axis=-1) + 1, 0)
    axis.imshow(found, cmap=shown["colormap"], vmin=0, vmax=6, interpolation="nearest")
    axis.set_title(name)
for axis in axes:
    axis.set_axis_off()
figure.tight_layout()
organs = {name: [r[truth == n, n].mean() for n in range(len(CLASSES))] for name, r in results.items()}
pd.DataFrame(organs, index=NAMES).round(3).rename_axis("mean probability of the right class")

# %% [markdown]
# Called background, the four organs that nobody annotated are unlearned. With candidates they are kept, and
# the liver is learned just as well. In training, the same object goes straight into Keras:
#
# ```python
# model.compile(optimizer="adam", loss=PartialSupervision(marginal=1.0, exclusion=2.0))
# model.fit(patches(prepared, config))   # pairs (image, candidates), datasets mixed
# ```
#
# **To remember**: a voxel's label is a set. The marginal losses add up probability inside it, the exclusion
# losses keep probability out of its complement, and with one candidate everywhere they are the losses you know.
