"""What training needs of the backend that Keras runs on: TensorFlow, JAX or PyTorch."""

from __future__ import annotations

import importlib
import os

import keras
import tensorflow as tf

from partialseg.errors import DataError

#: The packages whose versions decide what is computed on each backend.
_PACKAGES = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}
#: Without it XLA may add in any order on a GPU.
_XLA_FLAG = "--xla_gpu_deterministic_ops=true"


def on_tensorflow() -> bool:
    """Whether Keras runs on TensorFlow, which alone has strategies for several devices."""
    return keras.backend.backend() == "tensorflow"


def backend_versions() -> dict[str, str]:
    """Versions of Keras's backend and of TensorFlow, which reads the data whatever the backend is."""
    names = {"tensorflow", _PACKAGES[keras.backend.backend()]}
    return {name: importlib.import_module(name).__version__ for name in sorted(names)}


def leave_gpus_to_the_backend() -> None:
    """Keep TensorFlow, where it only reads data, from taking the memory of GPUs.

    Raises:
        DataError: If it took it already.
    """
    if on_tensorflow():
        return
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError as error:
        raise DataError(
            f"the {keras.backend.backend()} backend",
            "TensorFlow has taken the GPUs already",
            "call `train` before anything else computes with TensorFlow",
        ) from error


def check_deterministic() -> None:
    """See whether the same operations can be made to give the same bits.

    Raises:
        DataError: On JAX with a GPU, where that is decided before JAX starts, if it was not.
    """
    if keras.backend.backend() != "jax":
        return
    import jax

    if jax.default_backend() == "gpu" and _XLA_FLAG not in os.environ.get("XLA_FLAGS", ""):
        raise DataError(
            "deterministic",
            "JAX was started without its flag for deterministic operations",
            f"set XLA_FLAGS={_XLA_FLAG} before Python starts, or leave `deterministic` out",
        )


def compute_deterministically() -> None:
    """Let the same operations give the same bits on the same machine, at the price of slower ones.

    On JAX that is decided before it starts: see `check_deterministic`.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        tf.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def jit_compile() -> bool:
    """Whether XLA compiles the whole step: on JAX, which has nothing else.

    On TensorFlow it does not. On CPUs XLA's 3D convolutions take several times as long as oneDNN's, and with a GPU
    Keras' "auto" would leave it off as well under a strategy, such as `make_strategy` gives. Losses and norms, which
    gain by it, are compiled by themselves.
    """
    return keras.backend.backend() == "jax"
