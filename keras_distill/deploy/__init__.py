"""A Keras model → artifacts that were checked in the runtime that will serve them.

Every heavy package is imported inside a function, so that importing this room costs milliseconds.
"""

from keras_distill.deploy.budgets import Budgets
from keras_distill.deploy.bundle import read_bundle
from keras_distill.deploy.conversion import ConversionError
from keras_distill.deploy.litert import to_litert
from keras_distill.deploy.metadata import read_metadata
from keras_distill.deploy.onnx import quantize_onnx, to_onnx
from keras_distill.deploy.ship import ship
from keras_distill.deploy.shipment import Provenance, Shipment
from keras_distill.deploy.verify import Verification, verify

__all__ = [
    "Budgets",
    "ConversionError",
    "Provenance",
    "Shipment",
    "Verification",
    "quantize_onnx",
    "read_bundle",
    "read_metadata",
    "ship",
    "to_litert",
    "to_onnx",
    "verify",
]
