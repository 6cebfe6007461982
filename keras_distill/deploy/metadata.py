"""What an artifact says about itself, so that a lone file still explains its input and its output.

ONNX keeps it in `metadata_props`, which survives quantisation; LiteRT keeps it as one flatbuffer entry.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from keras_distill._checks import check_positive

LITERT_ENTRY = "keras_distill"


def describe(
    class_names: Sequence[str] | None = None,
    preprocessing: str | None = None,
    temperature: float | None = None,
    licence: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Returns the metadata as strings under their keys; what is not known is left out.

    Args:
        class_names: names of the classes in the order of the logits; kept as a JSON list.
        preprocessing: what the caller does to an example before the model sees it, in words.
        temperature: divide the logits by it before the softmax, for probabilities that mean what they say.
        licence: the licence under which the model may be used.
        provenance: where the model comes from, any JSON object.

    Example:
        >>> describe(["cat", "dog"], temperature=1.5)
        {'class_names': '["cat", "dog"]', 'temperature': '1.5'}
    """
    metadata = {}
    if class_names is not None:
        metadata["class_names"] = json.dumps([str(name) for name in class_names], ensure_ascii=False)
    if preprocessing is not None:
        metadata["preprocessing"] = preprocessing
    if temperature is not None:
        metadata["temperature"] = str(check_positive("temperature", temperature))
    if licence is not None:
        metadata["licence"] = licence
    if provenance is not None:
        metadata["provenance"] = json.dumps(provenance, ensure_ascii=False, sort_keys=True)
    return metadata


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns the metadata of an .onnx or .tflite file; an empty dictionary where it has none."""
    if os.fspath(path).endswith(".onnx"):
        import onnx

        model = onnx.load(os.fspath(path), load_external_data=False)
        return {entry.key: entry.value for entry in model.metadata_props}
    from ai_edge_litert import schema_py_generated as schema

    with open(path, "rb") as file:
        model = schema.Model.GetRootAs(file.read(), 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == LITERT_ENTRY.encode():
            return json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    return {}
