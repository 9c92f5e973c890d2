"""A trained network that computes in another precision than float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partialseg.errors import DataError
from partialseg.training.runs import Run

if TYPE_CHECKING:
    import keras


def load_model(run: Run, precision: str | None = None) -> keras.Model:
    """Load the network of a run.

    A run ends with a network that computes in float32, whichever precision its training computed in. In bfloat16 it
    took 0.56 of the time on a CPU with AVX512-BF16; a CPU that has no bfloat16 takes many times as long, and no GPU was
    measured. Weights and logits are float32 always.

    Args:
        run: The run.
        precision: In which the network computes: "float32", as by default, "bfloat16" or "float16".

    Raises:
        DataError: If the run has no trained network, or its network is not the one that its config describes.
    """
    model = run.load_model()
    if precision in (None, "float32"):
        return model
    from partialseg.training.optimizers import computing_in
    from partialseg.training.trainer import build_model

    with computing_in(precision):
        other = build_model(run.config, len(run.classes))
    if [weight.shape for weight in other.weights] != [weight.shape for weight in model.weights]:
        raise DataError(
            run.folder / "config.yaml",
            f"describes another network than that of {run.model_path.name}, so that it cannot be built in {precision}",
            "predict in float32, or put the config back that it was trained with",
        )
    other.set_weights(model.get_weights())
    return other
