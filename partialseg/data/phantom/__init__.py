"""Synthetic abdominal CT: phantoms in the raw layouts of five datasets, and real label maps dressed as CT."""

from partialseg.data.phantom.dress import DressResult, dress_folder, dress_label_map
from partialseg.data.phantom.write import write_phantom

__all__ = ["DressResult", "dress_folder", "dress_label_map", "write_phantom"]
