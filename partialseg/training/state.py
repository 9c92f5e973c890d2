"""All variables that a training changes, as arrays: what a checkpoint holds beside the place in the schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from partialseg.errors import DataError


class TrainingState:
    """Weights, seeds of dropout, optimiser with its means, states of losses, and the running mean of the loss.

    Args:
        model: Compiled, with an optimiser that is built.
        losses: Those that it was compiled with.
    """

    def __init__(self, model: keras.Model, losses: Sequence[keras.losses.Loss]) -> None:
        self.model = model
        of_losses = [
            value for loss in losses for value in vars(loss).values() if isinstance(value, keras.Variable)
        ]
        # The mean that `fit` keeps over an epoch, by which the plateau rule goes.
        self._running_loss = next(metric for metric in model.metrics if metric.name == "loss").variables
        self._loss_before = [np.array(variable.numpy()) for variable in self._running_loss]
        groups = {
            "model": model.variables,
            "optimizer": model.optimizer.variables,
            "loss": of_losses,
            "running_loss": self._running_loss,
        }
        self._variables = {
            f"{group}/{index:04d}/{variable.name}": variable
            for group, variables in groups.items()
            for index, variable in enumerate(variables)
        }

    def read(self) -> dict[str, np.ndarray]:
        """A copy of every variable, by name."""
        bring_home(self.model)
        return {name: np.array(variable.numpy()) for name, variable in self._variables.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], source: Path) -> None:
        """Set every variable.

        Args:
            arrays: What `read` gave, of the same network and optimiser.
            source: The file that they come from, for the error.

        Raises:
            DataError: If they are of another network or optimiser.
        """
        for name, variable in self._variables.items():
            if name not in arrays or arrays[name].shape != tuple(variable.shape):
                found = arrays[name].shape if name in arrays else "nothing"
                raise DataError(
                    source,
                    f"holds {found} for {name}, expected {tuple(variable.shape)}: it is of another version",
                    "finish the run with the version that began it, or train anew in another folder",
                )
        for name, variable in self._variables.items():
            variable.assign(arrays[name])
        self._loss_before = [np.array(variable.numpy()) for variable in self._running_loss]

    def restore_running_loss(self) -> None:
        """Set the running mean of the loss as `restore` did, which `fit` forgets as it begins an epoch."""
        for variable, value in zip(self._running_loss, self._loss_before, strict=True):
            variable.assign(value)


def bring_home(model: keras.Model) -> None:
    """On JAX, `fit` keeps variables to itself until it is asked for them."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
