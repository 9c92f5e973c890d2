"""The prior-aware loss of PaNN (Zhou et al., 2019): predicted organ sizes shall agree with known ones.

The prior is the share of the voxels that each class has, background first. It comes from fully annotated cases,
by `partialseg.data.organ_sizes.organ_size_prior(prepared, patch_config)`, as `{class: share}`, and is written
into a config or a call like this:

    PriorAware(prior={"background": 0.94, "liver": 0.04, "spleen": 0.02})
    PriorAware(prior=[0.94, 0.04, 0.02])

The shares must be those of the *patches* that the network sees: patches that are often centred on an organ hold
more of it than whole scans do, and a prior of whole scans would teach the network to miss a part of every organ.

How the divergence is made small with batches of a few patches
--------------------------------------------------------------
With the prior q and the mean p̄ of the predictions over all partial data, the term is Σ q log(q / p̄). The mean of
a batch is a poor stand-in: the logarithm of a mean is not the mean of logarithms, and a batch without a spleen
would be asked to show one. The paper takes the identity

    -log a = max over b < 0 of (a b + 1 + log(-b)),  reached at b = -1/a,

so that p̄ stands linearly beside dual variables b, one per class, and at given b batches give an unbiased gradient.
The duals go up by gradient, the network goes down. Here they are kept as m = -1/b, and go up by

    m ← m + rate (p̄ of the batch - m),

a running mean of p̄. That is gradient ascent in the geometry of the objective's own barrier: the mirror map
-log(-b) has the derivative -1/b = m, and the objective q (p̄ b + 1 + log(-b)), divided by q, has p̄ + 1/b = p̄ - m.
It keeps b below 0 at any rate from 0 to 1, needs no rate of its own for rare classes (whose b are large: -1000
for a share of 0.001), and is a fixed point at the optimum b = -1/p̄. With the rate 1 the duals are at the optimum
of each batch, which is the divergence of the batch alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from partialseg.losses.inputs import LOG_ZERO, Tensor
from partialseg.losses.reductions import sum_over_batch
from partialseg.losses.voxel_sets import (
    VoxelSets,
    marginal_nll,
    mean_per_class,
    sum_over_voxels,
    voxel_sets_of,
    where_counted,
)

#: Smallest share by which is divided: less than one voxel of a patch.
EPSILON = 1e-7

MERGED_VOXELS = ("pseudo_label", "marginal")


@keras.saving.register_keras_serializable(package="partialseg")
class PriorAware(keras.losses.Loss):
    """`CE + weight * KL(prior, mean prediction)`: cross-entropy, and a prior on how large the organs are.

    The cross-entropy ("CE") is the usual one where a voxel has one candidate. Elsewhere it is that of the most
    likely candidate, a pseudo-label by the network as it is, or of all candidates together.

    The divergence ("prior") is that of the mean prediction p̄ from the prior q, over all known voxels of the
    batch's partial samples (and of all replicas of a TensorFlow strategy); 0 if the batch has none. Every
    sample of the batch has the same value. See the module's text for how it is made small.

    State: with a `dual_rate` the loss keeps the running mean of p̄ (`mean_prediction`, at first the prior,
    which pulls nowhere). Every call moves it, also one in `model.evaluate` or for validation data, by the
    predictions there, unless they are not finite; `values` does not. `model.save` keeps it with the model,
    `load_model` restores it. Make one loss per training, under MirroredStrategy within the strategy's scope. On
    the JAX backend Keras drops what a loss assigns in training, so there a call is refused unless `dual_rate` is
    None.

    Reference:
        Zhou, Li, Bai, Wang, Chen, Han, Fishman, Yuille: Prior-aware neural network for partially-supervised
        multi-organ segmentation. ICCV 2019; sections 3.2 (the loss) and 3.3 (the min-max).

    Differs from the paper: Pseudo-labels are those of the current network at each step, where the paper renews
    them between rounds of training, and they are one of the voxel's candidates, so that an annotated organ is
    no pseudo-label outside its own mask. Fully annotated and partial samples weigh the same. Ignored voxels
    (all classes possible, or none given), such as padding, count neither for CE nor for p̄. The duals ascend as
    derived above, not by plain gradient steps, and start at the optimum for p̄ = q. So the estimate of p̄ is a
    running mean over about 1 / `dual_rate` batches, not the whole dataset, and contains a share `dual_rate` of
    the batch at hand: the gradient is unbiased only as the rate goes to 0. The prior is that of patches, where
    the paper's is of scans. The constant Σ q log q is added, so that the term is a divergence and 0 at its best.

    Args:
        prior: Share of the voxels for each class: a sequence, background first, or `{class: share}`, its keys
            the classes' numbers 0, 1, …, or their names in the order of the classes, "background" first.
        weight: Of the divergence, at least 0.
        dual_rate: How far the running mean goes toward the mean of each batch, above 0, at most 1. 0.05 is a
            mean over the last twenty batches or so. A smaller one averages over more, but answers late, and
            network and duals swing about each other. It is the default, since it is the paper's way and
            batches of a few patches differ much. None: no state; the divergence is that of each batch alone,
            biased for small batches; for JAX, or where a batch is large.
        merged_voxels: "pseudo_label" or "marginal": what CE is where a voxel has several candidates.
            "marginal" is -log of their probability together, as in `MarginalCrossEntropy`; take it where the
            network does not yet know the organs when training on partial data begins.
        one_against_rest: True: the divergence is a sum over the classes of that between "this class" and "any
            other", Σ q log(q / p̄) + (1 - q) log((1 - q) / (1 - p̄)), as in the paper. False: the divergence of
            the two distributions, Σ q log(q / p̄).
        partial_samples_only: Whether p̄ is over the partial samples only, as in the paper: those of which a
            voxel has several candidates, but not all classes.
        from_logits: Whether `y_pred` holds logits, else probabilities.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If the prior is no distribution of at least two classes, or another argument is none of the
            values above; when called, if the prior has another number of classes than `y_pred`, or on JAX with
            a `dual_rate`.

    Example:
        One voxel that may be anything but liver, and its network has the spleen four times too often:

        >>> prior = {"background": 0.6, "liver": 0.2, "spleen": 0.2}
        >>> loss = PriorAware(prior, dual_rate=None, one_against_rest=False, from_logits=False)
        >>> values = loss.values([[1, 0, 1]], [[0.1, 0.1, 0.8]])
        >>> {term: round(float(value[0]), 4) for term, value in values.items()}
        {'CE': 0.2231, 'prior': 0.9364}
    """

    def __init__(
        self,
        prior: Mapping[Any, float] | Sequence[float],
        weight: float = 0.1,
        dual_rate: float | None = 0.05,
        merged_voxels: str = "pseudo_label",
        one_against_rest: bool = True,
        partial_samples_only: bool = True,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "prior_aware",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if weight < 0:
            raise ValueError(f"weight must not be negative. Received: weight={weight}")
        if dual_rate is not None and not 0 < dual_rate <= 1:
            raise ValueError(
                f"dual_rate must be above 0 and at most 1, or None. Received: dual_rate={dual_rate}"
            )
        if merged_voxels not in MERGED_VOXELS:
            raise ValueError(
                f"merged_voxels must be one of {MERGED_VOXELS}. Received: merged_voxels={merged_voxels!r}"
            )
        self.prior = _shares(prior)
        self.weight = float(weight)
        self.dual_rate = dual_rate
        self.merged_voxels = merged_voxels
        self.one_against_rest = one_against_rest
        self.partial_samples_only = partial_samples_only
        self.from_logits = from_logits
        # Shares that were rounded for a config do not quite sum to 1.
        self._q = np.array(self.prior) / math.fsum(self.prior)
        self.mean_prediction = None
        if dual_rate is not None:
            self.mean_prediction = keras.Variable(
                self._q, dtype="float32", trainable=False, name="mean_prediction", aggregation="mean"
            )

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`; moves the running mean."""
        self._check_state_is_kept()
        sets = self._sets(y_true, y_pred)
        mean, found = self._mean_of_batch(sets)
        estimate = self._estimate(mean, found)
        if self.mean_prediction is not None:
            self.mean_prediction.assign(ops.cast(estimate, "float32"))
        return self._cross_entropy(sets) + self.weight * self._divergence(mean, found, estimate)

    def values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The two terms one by one, without weights; leaves the running mean as it is.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            One value per sample, `(batch,)`, under "CE" and "prior". With a `dual_rate`, "prior" is what the
            next call would add: a lower bound of the batch's divergence, which may be below 0.
        """
        sets = self._sets(y_true, y_pred)
        mean, found = self._mean_of_batch(sets)
        cross_entropy = self._cross_entropy(sets)
        divergence = self._divergence(mean, found, self._estimate(mean, found))
        return {"CE": cross_entropy, "prior": ops.broadcast_to(divergence, ops.shape(cross_entropy))}

    def class_values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The two terms of each class; cross-entropy is the mean over the class's own voxels.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            `(batch, classes)` under the names of `values`; NaN where a class takes no part.
        """
        sets = self._sets(y_true, y_pred)
        mean, found = self._mean_of_batch(sets)
        cross_entropy = mean_per_class(sets, self._nll(sets))
        divergence = self._divergence_per_class(mean, self._estimate(mean, found))
        divergence = ops.broadcast_to(where_counted(found, divergence), ops.shape(cross_entropy))
        return {"CE": cross_entropy, "prior": divergence}

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss, its running mean apart."""
        return {
            **super().get_config(),
            "dtype": self.dtype,
            "prior": list(self.prior),
            "weight": self.weight,
            "dual_rate": self.dual_rate,
            "merged_voxels": self.merged_voxels,
            "one_against_rest": self.one_against_rest,
            "partial_samples_only": self.partial_samples_only,
            "from_logits": self.from_logits,
        }

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Keep the running mean with a model that is saved; called by Keras."""
        if self.mean_prediction is not None:
            store["mean_prediction"] = ops.convert_to_numpy(self.mean_prediction)

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Restore the running mean, if the file holds one of this loss; called by Keras."""
        if self.mean_prediction is not None and "mean_prediction" in store:
            self.mean_prediction.assign(store["mean_prediction"])

    def _sets(self, y_true: Tensor, y_pred: Tensor) -> VoxelSets:
        sets = voxel_sets_of(y_true, y_pred, self.from_logits)
        num_classes = sets.candidates.shape[-1]
        if num_classes != len(self.prior):
            raise ValueError(
                f"The prior has {len(self.prior)} shares, but y_pred has {num_classes} classes: give one share "
                "for each class, background first."
            )
        return sets

    def _cross_entropy(self, sets: VoxelSets) -> Tensor:
        """Mean over all voxels; `(batch,)`."""
        return ops.mean(self._nll(sets), axis=1)

    def _nll(self, sets: VoxelSets) -> Tensor:
        """-log of the most likely candidate, or of all of them, 0 where ignored; `(batch, voxels)`."""
        if self.merged_voxels == "marginal":
            return marginal_nll(sets)
        log_p = ops.max(ops.where(sets.candidates > 0, sets.log_probabilities, LOG_ZERO), axis=-1)
        return ops.where(sets.known[..., 0] > 0, -log_p, 0)

    def _mean_of_batch(self, sets: VoxelSets) -> tuple[Tensor, Tensor]:
        """Mean prediction `(classes,)` over the voxels that count, and whether there is one: 0 or 1."""
        counting = sets.known
        if self.partial_samples_only:
            merged = sets.known * ops.cast(sets.size > 1, sets.known.dtype)
            counting = counting * ops.max(merged, axis=1, keepdims=True)
        values = ops.concatenate([ops.exp(sets.log_probabilities) * counting, counting], axis=-1)
        total = sum_over_batch(sum_over_voxels(values))[0]
        return total[:-1] / ops.maximum(total[-1], 1), ops.minimum(total[-1], 1)

    def _estimate(self, mean: Tensor, found: Tensor) -> Tensor:
        """The duals as -1/b, after their ascent on this batch; `(classes,)`, without gradient."""
        mean = ops.stop_gradient(mean)
        if self.mean_prediction is None:
            return mean
        before = ops.cast(ops.convert_to_tensor(self.mean_prediction), mean.dtype)
        after = before + self.dual_rate * found * (mean - before)
        # A step whose gradients are not finite is skipped where a loss is scaled; were the running mean to take
        # its NaN, no later step could be finite.
        return ops.where(ops.all(ops.isfinite(after)), after, before)

    def _divergence(self, mean: Tensor, found: Tensor, estimate: Tensor) -> Tensor:
        """Sum over the classes; a scalar, 0 where nothing counts."""
        return found * ops.sum(self._divergence_per_class(mean, estimate))

    def _divergence_per_class(self, mean: Tensor, estimate: Tensor) -> Tensor:
        """Each class's q (p̄ b + 1 + log(-b)) + q log q at b = -1/estimate, that of the rest added; `(classes,)`."""
        prior = ops.convert_to_tensor(self._q, dtype=mean.dtype)
        if self.one_against_rest:
            prior, mean, estimate = (ops.concatenate([share, 1 - share]) for share in (prior, mean, estimate))
        estimate = ops.maximum(estimate, EPSILON)
        values = prior * (ops.log(prior / estimate) + 1 - mean / estimate)
        return ops.sum(ops.reshape(values, (-1, len(self.prior))), axis=0)

    def _check_state_is_kept(self) -> None:
        """Raise where the running mean would be lost, or moved once by every replica."""
        if self.mean_prediction is None:
            return
        if keras.backend.backend() == "jax":
            raise ValueError(
                "With a dual_rate the loss has a state, which Keras drops in training on the JAX backend. "
                "Give dual_rate=None (the divergence of each batch alone), or train on another backend."
            )
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            strategy = tf.distribute.get_strategy()
            if strategy.num_replicas_in_sync > 1 and not strategy.extended.variable_created_in_scope(
                self.mean_prediction.value
            ):
                raise ValueError(
                    "The loss was made outside the scope of the strategy that trains with it, so the replicas "
                    "would not share its state. Make it within `with strategy.scope():`."
                )


def _shares(prior: Mapping[Any, float] | Sequence[float]) -> tuple[float, ...]:
    """The prior as one share per class.

    Raises:
        ValueError: If it is no distribution over at least two classes, or a mapping in doubtful order.
    """
    if isinstance(prior, Mapping):
        prior = _in_order(prior)
    shares = tuple(float(share) for share in prior)
    if len(shares) < 2:
        raise ValueError(f"The prior must give the shares of two classes or more. Received: {shares}")
    if not all(0 < share < 1 for share in shares):
        raise ValueError(
            f"Each share of the prior must be above 0 and below 1. Received: {shares}. A class that no fully "
            "annotated case shows has no known size: leave it out of the classes, or estimate its share."
        )
    if abs(math.fsum(shares) - 1) > 1e-3:
        raise ValueError(
            f"The shares of the prior must sum to 1. Received: {shares}, which sum to {math.fsum(shares):.6g}. "
            "They are shares of all voxels, background among them."
        )
    return shares


def _in_order(prior: Mapping[Any, float]) -> list[float]:
    """The shares of a mapping in the order of the classes."""
    if all(isinstance(name, int) for name in prior):
        if sorted(prior) != list(range(len(prior))):
            raise ValueError(
                f"A prior by class number must have every number from 0. Received: {sorted(prior)}"
            )
        return [prior[number] for number in sorted(prior)]
    if next(iter(prior)) != "background":
        raise ValueError(
            "A prior by class name must have the order of the classes, 'background' first. "
            f"Received: {list(prior)}"
        )
    return list(prior.values())
