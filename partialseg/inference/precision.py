"""A trained network that computes in another precision than in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partialseg.errors import DataError
from partialseg.training.runs import Run

if TYPE_CHECKING:
    import keras


def load_model(run: Run, precision: str | None = None) -> keras.Model:
    """Load the network of a run.

    In bfloat16 a CPU with AVX512-BF16 or AMX, or a GPU with tensor cores, takes about half the time; a CPU without
    takes many times as long. Weights and logits are float32 always.

    Args:
        run: The run.
        precision: In which the network computes: "float32", "bfloat16" or "float16"; that of the training by default.

    Raises:
        DataError: If the run has no trained network, or its network is not the one that its config describes.
    """
    model = run.load_model()
    if precision in (None, run.config.precision):
        return model
    from partialseg.models import build_network
    from partialseg.training.optimizers import computing_in

    with computing_in(precision):
        other = build_network(num_classes=len(run.classes), **run.config.network.model_dump())
    if [weight.shape for weight in other.weights] != [weight.shape for weight in model.weights]:
        raise DataError(
            run.folder / "config.yaml",
            f"describes another network than that of {run.model_path.name}, so that it cannot be built in {precision}",
            "predict without a precision, or put the config back that it was trained with",
        )
    other.set_weights(model.get_weights())
    return other
