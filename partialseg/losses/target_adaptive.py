"""The target adaptive loss of PIPO-FAN: cross-entropy with the organs that are not labelled in the background."""

from __future__ import annotations

from typing import Any

import keras

from partialseg.losses.inputs import Tensor
from partialseg.losses.marginal import MarginalCrossEntropy
from partialseg.losses.voxel_sets import marginal_nll, mean_per_class, voxel_sets_of


@keras.saving.register_keras_serializable(package="partialseg")
class TargetAdaptive(keras.losses.Loss):
    """Cross-entropy after the probabilities of unlabelled organs are added to that of background.

    At a voxel labelled as organ n it is `-log p_n`; at one of merged background `-log(1 - sum of p_n over the
    annotated organs)`, the same as `-log` of the sum over background and the other organs; mean over voxels.
    On fully annotated samples it is plain cross-entropy.

    Reference:
        Fang and Yan, "Multi-organ Segmentation over Partially Labeled Datasets with Multi-scale Feature
        Abstraction", IEEE Transactions on Medical Imaging 2020 (PIPO-FAN). What is added up, and the voxel
        mean, were read from the authors' training script. Shi et al. (2021, section 2) say that it amounts
        to their marginal cross-entropy, and on candidates it is just that: `MarginalCrossEntropy`, with no
        Dice and no exclusion.

    Differs from the paper: it is the loss alone, without the pyramid network and the supervision of its
    scales. The paper's batches hold one dataset; here each voxel has its own set, so datasets mix in a batch,
    and a set without background ("kidney": left or right) is merged too. Ignored voxels add nothing. The
    authors' script clips probabilities at 1e-10, which ends the gradient there; here the logarithm is exact.

    Args:
        from_logits: Whether `y_pred` holds logits, else probabilities.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Example:
        >>> loss = TargetAdaptive(from_logits=False)
        >>> round(float(loss([[1, 0, 1]], [[0.1, 0.2, 0.7]])), 4)  # -log(1 - 0.2): the liver is annotated
        0.2231
    """

    def __init__(
        self,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "target_adaptive",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self._marginal = MarginalCrossEntropy(from_logits=from_logits, dtype=dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        return self._marginal.call(y_true, y_pred)

    def values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The loss per sample, `(batch,)`, under "TAL".

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.
        """
        return {"TAL": self.call(y_true, y_pred)}

    def class_values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The mean of the loss over each class's own voxels.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            `(batch, classes)` under the names of `values`; NaN where a class takes no part.
        """
        sets = voxel_sets_of(y_true, y_pred, self.from_logits)
        return {"TAL": mean_per_class(sets, marginal_nll(sets))}

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {**super().get_config(), "dtype": self.dtype, "from_logits": self.from_logits}
