"""Train one multi-organ 3D CT segmentation network from datasets that each label only some organs."""

from partialseg._environment import prepare_environment

__version__ = "0.1.0"

prepare_environment()
