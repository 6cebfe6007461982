"""What stands above a model card for machines: the front matter that the Hugging Face Hub reads."""

import json
from collections.abc import Mapping
from typing import Any

# Licences by the name that the Hub has for them; another is "other", with its name.
_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "gpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense",
}  # fmt: skip
_TASK_OF_PREPARATION = {"table": "tabular-classification", "text": "text-classification"}


def front_matter(manifest: Mapping[str, Any], accuracy: float) -> str:
    """YAML between two lines of dashes: library, licence, task, and the accuracy as a result that is found by search.

    Args:
        manifest: the bundle's.
        accuracy: of the student on the test set, a fraction.

    Example:
        >>> made = {"name": "student", "licence": "MIT", "inputs": [{"shape": [None, 8, 8, 1]}]}
        >>> text = front_matter(made | {"artifacts": {"onnx": {}}, "provenance": {"data": "digits"}}, 0.975)
        >>> print(text.splitlines()[2])
        license: "mit"

    Reference:
        https://huggingface.co/docs/hub/model-cards#model-card-metadata
    """
    entries: dict[str, Any] = {"library_name": "keras"}
    licence = manifest["licence"]
    if licence:
        name = licence.lower().replace(" ", "-")
        entries |= {"license": name} if name in _LICENCES else {"license": "other", "license_name": licence}
    task = task_of(manifest)
    if task:
        entries["pipeline_tag"] = task
    formats = sorted({"tflite" if name.startswith("litert") else "onnx" for name in manifest["artifacts"]})
    entries |= {"metrics": ["accuracy"], "tags": ["knowledge-distillation", "keras-distill", *formats]}
    data = manifest["provenance"]["data"]
    result = {
        "task": {"type": task or "other"},
        "dataset": {"name": data, "type": data, "split": "test"},
        "metrics": [{"type": "accuracy", "value": round(accuracy, 4)}],
    }
    entries["model-index"] = [{"name": manifest["name"], "results": [result]}]
    # JSON is YAML, and quotes what would be read as something else.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    return "\n".join(["---", *lines, "---", ""])


def task_of(manifest: Mapping[str, Any]) -> str | None:
    """What the Hub calls the student's task, as far as its inputs tell.

    Example:
        >>> task_of({"inputs": [{"shape": [None, 8, 8, 1]}]}), task_of({"inputs": [{"shape": [None, 40]}]})
        ('image-classification', None)
    """
    preparation = manifest.get("preparation")
    if preparation:
        return _TASK_OF_PREPARATION.get(preparation["kind"])
    shapes = [entry["shape"] for entry in manifest["inputs"]]
    is_image = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][-1] in (1, 3, 4)
    return "image-classification" if is_image else None
