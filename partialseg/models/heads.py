"""A trained network with other organs: what it has learned is kept, class by class."""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

#: The axis along which a weight has its classes, by the end of its path; those not named have none.
CLASS_AXES = {
    r"logits\d+/(kernel|bias)$": -1,
    r"attention_conv0/kernel$": -2,  # PIPO-FAN's, of logits
    r"controller/kernel$": 0,  # DoDNet's, of features and organs
}
#: Of these, weights by which a class counts for what is computed of all: 0 for a new one, so that nothing changes.
_COUNTS_FOR_ALL = r"attention_conv0/kernel$"
#: And weights of which each organ's give its logit, but none background's: the last is the logit's bias.
_GIVES_ORGANS = r"controller/kernel$"
#: Logits of coarser stages, which networks with and without deep supervision do not share.
_COARSER_LOGITS = r"(logits|organ_logit|head_input)[1-9]\d*/(kernel|bias)$"
#: Share of background's probability with which a new organ begins; of an organ's odds where background has no weights.
NEW_ORGAN_SHARE = 0.01


def take_over(
    trained: keras.Model, trained_classes: Sequence[str], model: keras.Model, classes: Sequence[str]
) -> None:
    """Set the weights of a network to those of a trained one of the same kind that knows other classes.

    Weights without an axis of classes are copied; the others class by class, by name. To the trained network a new
    organ was background: its logit begins as background's less log 100, so that it has a hundredth of background's
    probability at every voxel and no label changes. It has no say in PIPO-FAN's attention, which weighs the scales for
    all classes. DoDNet's background has no weights, its logit is 0: there a new organ's logit begins as that of the
    first organ that both networks know, less log 100, so that it is never the largest (where they share no organ, it
    begins as it is in `model`). Logits of coarser stages of which the trained network, without deep supervision, has
    none, begin as they are in `model`.

    A conditioned network, which tells organs by their place in the list, cannot be given others.

    Args:
        trained: The trained network.
        trained_classes: Its classes, background first.
        model: The network to set.
        classes: Its classes, background first.

    Raises:
        ValueError: If the networks differ in more than their classes.

    Example:
        >>> from partialseg.models import unet
        >>> two, three = (unet(n, strides=((1, 1, 1), (2, 2, 2)), base_channels=2) for n in (2, 3))
        >>> take_over(two, ("background", "liver"), three, ("background", "spleen", "liver"))
        >>> ops.convert_to_numpy(three.get_layer("logits0").bias).round().tolist()
        [0.0, -5.0, 0.0]
    """
    known = {weight.path: weight for weight in trained.weights}
    unlike = known.keys() ^ {weight.path for weight in model.weights}
    if others := sorted(path for path in unlike if not re.search(_COARSER_LOGITS, path)):
        raise ValueError(
            f"the networks have other weights: {', '.join(others[:3])} and so on are in one alone"
        )
    changed = []
    for new in model.weights:
        new_values = ops.convert_to_numpy(new)
        if new.path in known:
            old_values = ops.convert_to_numpy(known[new.path])
            new_values = _taken_over(new.path, old_values, tuple(trained_classes), new_values, tuple(classes))
        changed.append(new_values)
    model.set_weights(changed)


def _taken_over(
    path: str, old: np.ndarray, old_classes: tuple[str, ...], new: np.ndarray, classes: tuple[str, ...]
) -> np.ndarray:
    """One weight: the old values where they fit, else those of `new`."""
    if old_classes == classes and old.shape == new.shape:
        return old
    axis = next((axis for ending, axis in CLASS_AXES.items() if re.search(ending, path)), None)
    expected = list(old.shape)
    if axis is not None:
        expected[axis] += len(classes) - len(old_classes)
    if tuple(expected) != new.shape:
        raise ValueError(f"{path} would have the shape {tuple(expected)}, expected {new.shape}")
    if axis is None:
        return old
    # Before the classes an axis may have other entries, as DoDNet's controller has features before its organs.
    others = old.shape[axis] - len(old_classes)
    old, result = np.moveaxis(old, axis, 0), np.moveaxis(new, axis, 0).copy()
    result[:others] = old[:others]
    gives_logits = axis == -1
    shared = [name for name in old_classes[1:] if name in classes]
    for index, name in enumerate(classes):
        if name in old_classes:
            result[others + index] = old[others + old_classes.index(name)]
        elif gives_logits:
            less = np.log(NEW_ORGAN_SHARE) if new.ndim == 1 else 0.0
            result[others + index] = old[others] + less
        elif re.search(_COUNTS_FOR_ALL, path):
            result[others + index] = 0.0
        elif shared and re.search(_GIVES_ORGANS, path):
            result[others + index] = old[others + old_classes.index(shared[0])]
            result[others + index, -1] += np.log(NEW_ORGAN_SHARE)
    return np.moveaxis(result, 0, axis)
