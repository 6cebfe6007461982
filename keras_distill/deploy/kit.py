"""The kit's own code, for whoever opens an artifact or reads a bundle as the gate does; see `_kit.py`."""

from keras_distill._kit import kit_folder, kit_module

__all__ = ["kit_folder", "kit_module"]
