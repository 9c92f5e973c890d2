"""The two simple ways to train on partial labels with regular losses: what the other losses must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from partialseg.losses.inputs import Tensor
from partialseg.losses.supervision import PartialSupervision


def merged_background_is_background(candidates: Tensor) -> Tensor:
    """Take merged background for background alone; 0 or 1, same shape and dtype.

    Example:
        >>> changed = merged_background_is_background([[1, 0, 1], [0, 1, 0], [1, 1, 1]])
        >>> ops.convert_to_numpy(changed).tolist()  # of background or spleen, liver, ignored
        [[1, 0, 0], [0, 1, 0], [1, 1, 1]]
    """
    candidates = ops.convert_to_tensor(candidates)
    background = ops.cast(ops.arange(candidates.shape[-1]) == 0, candidates.dtype)
    return ops.where(_merged_background(candidates), background, candidates)


def merged_background_is_ignored(candidates: Tensor) -> Tensor:
    """Take merged background for ignored (all classes are possible); 0 or 1, same shape and dtype.

    Example:
        >>> changed = merged_background_is_ignored([[1, 0, 1], [0, 1, 0], [1, 0, 0]])
        >>> ops.convert_to_numpy(changed).tolist()  # of background or spleen, liver, background
        [[1, 1, 1], [0, 1, 0], [1, 0, 0]]
    """
    candidates = ops.convert_to_tensor(candidates)
    return ops.where(_merged_background(candidates), ops.ones_like(candidates), candidates)


def _merged_background(candidates: Tensor) -> Tensor:
    """Where a voxel may be background or some, but not all, of the organs; bool, `(batch, ..., 1)`."""
    size = ops.sum(ops.cast(candidates > 0, "int32"), axis=-1, keepdims=True)
    several = ops.logical_and(size > 1, size < candidates.shape[-1])
    return ops.logical_and(several, candidates[..., :1] > 0)


class _RegularLosses(keras.losses.Loss):
    """Cross-entropy plus soft Dice on changed candidates; see the two losses below for the arguments."""

    _default_name: str
    _change: Callable[[Tensor], Tensor]

    def __init__(
        self,
        from_logits: bool = True,
        class_reduction: str = "mean",
        include_background: bool = True,
        batch: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name or self._default_name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self.class_reduction = class_reduction
        self.include_background = include_background
        self.batch = batch
        self._regular = PartialSupervision(
            terms=("mCE", "mDC"),
            from_logits=from_logits,
            class_reduction=class_reduction,
            include_background=include_background,
            batch=batch,
            dtype=dtype,
        )

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        return self._regular.call(self._change(y_true), y_pred)

    def values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and one minus soft Dice, `(batch,)` each, under "CE" and "DC".

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.
        """
        terms = self._regular.values(self._change(y_true), y_pred)
        return {"CE": terms["mCE"], "DC": terms["mDC"]}

    def class_values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The two terms of each class; cross-entropy is the mean over the class's own voxels.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            `(batch, classes)` under the names of `values`; NaN where a class takes no part.
        """
        terms = self._regular.class_values(self._change(y_true), y_pred)
        return {"CE": terms["mCE"], "DC": terms["mDC"]}

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {
            **super().get_config(),
            "dtype": self.dtype,
            "from_logits": self.from_logits,
            "class_reduction": self.class_reduction,
            "include_background": self.include_background,
            "batch": self.batch,
        }


@keras.saving.register_keras_serializable(package="partialseg")
class NaiveBackground(_RegularLosses):
    """Cross-entropy plus soft Dice with every organ that is not annotated taken for background.

    This is what training on the label maps as they come does: background that may hold unlabelled organs,
    `{background, spleen, ...}`, becomes `{background}`, so the network is taught that a spleen in a
    liver-only scan is background. On fully annotated samples it is plain cross-entropy plus soft Dice.

    Sets without background ("kidney": left or right) stay merged, and ignored voxels stay ignored.

    Reference:
        The baseline that Zhou et al., "Prior-aware Neural Network for Partially-Supervised Multi-Organ
        Segmentation", ICCV 2019, call misleading: the background of a partially labelled scan usually holds
        other organs of interest.

    Differs from the paper: Zhou et al. describe it without a formula; cross-entropy and soft Dice have weight 1
    here, as the marginal losses of `PartialSupervision` have, so that the two compare.

    Args:
        from_logits: Whether `y_pred` holds logits, else probabilities.
        class_reduction: Of Dice, "mean" or "sum", see `MarginalDice`.
        include_background: Whether Dice counts background.
        batch: Whether Dice sums over the batch.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If `class_reduction` is not known.

    Example:
        Background or spleen (classes: background, liver, spleen) is taken for background:

        >>> loss = NaiveBackground(from_logits=False)
        >>> {term: round(float(value[0]), 4) for term, value in loss.values([[1, 0, 1]], [[0.1, 0.2, 0.7]]).items()}
        {'CE': 2.3026, 'DC': 0.9394}
    """

    _default_name = "naive_background"
    _change = staticmethod(merged_background_is_background)


@keras.saving.register_keras_serializable(package="partialseg")
class IgnoreBackground(_RegularLosses):
    """Cross-entropy plus soft Dice that leave out every voxel that may be background or an unlabelled organ.

    Such voxels, `{background, spleen, ...}`, become ignored ones: out of every sum, with zero gradient. So
    nothing wrong is taught, and of a partially labelled sample only the voxels of its organs count. On fully
    annotated samples it is plain cross-entropy plus soft Dice.

    Sets without background ("kidney": left or right) stay merged.

    Reference:
        González, Washko and San José Estépar, "Multi-structure Segmentation from Partially Labeled Datasets.
        Application to Body Composition Measurements on CT Scans", RAMBO workshop at MICCAI 2018: a cost
        function of the labelled voxels alone.

    Differs from the paper: there the cost is the mean Dice of the structures that an image annotates, alone, on
    two-dimensional slices; here it is cross-entropy plus soft Dice with the weights of `PartialSupervision`, so
    that the two compare. The voxel mean of the cross-entropy divides by all voxels, ignored ones too.

    Args:
        from_logits: Whether `y_pred` holds logits, else probabilities.
        class_reduction: Of Dice, "mean" or "sum", see `MarginalDice`.
        include_background: Whether Dice counts background.
        batch: Whether Dice sums over the batch.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If `class_reduction` is not known.

    Example:
        Of a voxel of background or spleen, and one of liver, the second alone counts:

        >>> loss = IgnoreBackground(from_logits=False)
        >>> values = loss.values([[[1, 0, 1], [0, 1, 0]]], [[[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]])
        >>> round(float(values["CE"][0]), 4)  # -log(0.5) / 2 voxels
        0.3466
    """

    _default_name = "ignore_background"
    _change = staticmethod(merged_background_is_ignored)
