"""The share of time for which the device waited for data, in any `fit` of Keras on TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from partialseg.errors import DataError


class DataWait(keras.callbacks.Callback):
    """Measures for which share of each epoch the device waited for the next batch.

    Put it first among the callbacks: it writes `data_wait` (0 to 1) into the logs of each epoch, and History,
    CSVLogger, TensorBoard and whatever else comes after it shows it. Near 0, data are ready when they are asked
    for; well above, a faster device would not train faster.

    The share is time spent in `next(batches)`, divided by time from the epoch's begin to the end of its last step;
    what comes after that (validation, checkpoints) is not in it. The first step of each `fit` starts the pipeline and
    traces the graph: it is left out, and its wait is `first_batch_seconds`. Where the first epoch is that step
    alone, its share is 0.

    Keras fetches a batch inside of its compiled step, where no clock sees it. While `fit` runs, the model's
    `train_function` is replaced by one that fetches the batch under a clock and hands it to
    the function that was there, which takes batches from any iterable: so the very same step is computed, and
    strategies, XLA and eager runs do as they did. As a callback that looks at each step, it makes `fit` await the
    device before the next batch is fetched (as reading the loss in each step does), so that the device has nothing to
    do while the clock runs.

    One thing differs: where data of unknown length end, plain Keras counts a step of the optimiser (`iterations`)
    without a batch, which moves Adam's bias correction. With this callback there is no such step.

    Args:
        report: Called with a line after each epoch, such as `print`.
        clock: Seconds, counted from anywhere.

    Attributes:
        share: Of the last epoch that ended, 0 to 1.
        seconds: Waited in the epoch under way, or the last one.
        first_batch_seconds: Waited for the first batch of this `fit`.

    Raises:
        DataError: When `fit` begins: if the model was compiled with `steps_per_execution` other than 1, since then
            batches are fetched inside of one compiled call; or if Keras does not run on TensorFlow.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(loss="mse")
        >>> dataset = tf.data.Dataset.from_tensors((np.ones((4, 2)), np.ones((4, 1)))).repeat(3)
        >>> wait = DataWait()
        >>> history = model.fit(dataset, epochs=2, verbose=0, callbacks=[wait])
        >>> [0 <= share <= 1 for share in history.history["data_wait"]]
        [True, True]
    """

    def __init__(
        self, report: Callable[[str], object] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__()
        self.report, self.clock = report, clock
        self.share = self.seconds = self.first_batch_seconds = 0.0
        self._is_first_step = True
        self._began = self._ended = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the clock between `fit` and its step."""
        if keras.backend.backend() != "tensorflow":
            problem = f"Keras runs on {keras.backend.backend()}, expected TensorFlow"
            raise DataError("DataWait", problem, "leave the callback out, or set KERAS_BACKEND=tensorflow")
        if self.model.steps_per_execution != 1:
            problem = f"the model has steps_per_execution={self.model.steps_per_execution}, expected 1"
            raise DataError("DataWait", problem, "compile with 1, or leave the callback out")
        self._is_first_step, self.first_batch_seconds = True, 0.0
        self.model.train_function = _ClockedStep(_without_clock(self.model.train_function), self)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start counting."""
        self.seconds = 0.0
        self._began = self._ended = self.clock()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note when a step ended; count from the end of the first one on."""
        self._ended = self.clock()
        if self._is_first_step:
            self.first_batch_seconds, self.seconds = self.seconds, 0.0
            self._began, self._is_first_step = self._ended, False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the share into the logs, and the line."""
        seconds = self._ended - self._began
        self.share = self.seconds / seconds if seconds > 0 else 0.0
        if logs is not None:
            logs["data_wait"] = self.share
        if self.report is not None:
            waited = f"waited for data {self.seconds:.1f} of {seconds:.1f} s, {self.share:.0%}"
            self.report(f"epoch {epoch + 1}: {waited}")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the model its own function back."""
        self.model.train_function = _without_clock(self.model.train_function)


class _ClockedStep:
    """A `train_function` that fetches the batch under a clock, then does what another one does with it.

    Keras does not call `on_train_end` when training ends by an exception. The model then keeps this one, which goes
    on computing the same steps, and the next `DataWait` looks behind it.
    """

    def __init__(self, step: Callable[[Any], Any], wait: DataWait) -> None:
        self.step, self.wait = step, wait
        self._compiled: Callable[[Any], Any] | None = None

    def __call__(self, batches: Iterator[Any]) -> Any:
        started = self.wait.clock()
        batch = next(batches)  # at the end of the data its StopIteration ends the epoch, as Keras's own does
        self.wait.seconds += self.wait.clock() - started
        if self.wait.model.run_eagerly or not hasattr(
            batches, "element_spec"
        ):  # the latter: `train_on_batch`
            return self.step([batch])
        if self._compiled is None:
            # With the shapes that the data declare, as in Keras's own graph: those of the batch may be narrower, and
            # then results are rounded otherwise.
            self._compiled = tf.function(
                lambda batch: self.step([batch]), input_signature=[batches.element_spec], autograph=False
            )
        return self._compiled(batch)


def _without_clock(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return function.step if isinstance(function, _ClockedStep) else function
