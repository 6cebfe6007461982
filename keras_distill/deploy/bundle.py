"""A bundle: artifacts, golden answers and the kit in one folder, described by `manifest.json`.

The manifest's fields are documented in the kit's README; what reads and checks them is the kit's `benchmark.py`,
so that a device refuses what we refuse.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._checks import error_message
from keras_distill.deploy.kit import kit_folder, kit_module

KIT_FILES = (
    "README.md",
    "benchmark.py",
    "classify_onnx.py",
    "classify_litert.py",
    "requirements-onnx.txt",
    "requirements-litert.txt",
)
WEB_FILES = ("index.html", "page.js", "bundle.js", "image.js", "style.css")


def write_kit(folder: Path, *, web: bool = False) -> None:
    """Copies the kit into a bundle; its web page only where it is asked for."""
    for name in KIT_FILES:
        shutil.copyfile(kit_folder() / name, folder / name)
    if web:
        (folder / "web").mkdir()
        for name in WEB_FILES:
            shutil.copyfile(kit_folder() / "web" / name, folder / "web" / name)


def write_golden(
    folder: Path, inputs: Mapping[str, np.ndarray], labels: np.ndarray, logits: Mapping[str, np.ndarray]
) -> None:
    """Writes `golden.npz`: some real inputs, their labels, and what Keras and every artifact answered.

    Args:
        folder: the bundle.
        inputs: `{input name: (num_golden, ...)}`.
        labels: `(num_golden,)`.
        logits: `{"keras" or artifact's name: (num_golden, num_classes)}`.
    """
    arrays = {f"input/{name}": array for name, array in inputs.items()}
    arrays |= {f"logits/{name}": array for name, array in logits.items()}
    np.savez(folder / "golden.npz", labels=labels, **arrays)  # type: ignore[arg-type]  # see NumPy's stub of savez


def golden_tolerance(precision: str, logits: np.ndarray) -> float:
    """How far an artifact's logits may lie from its own golden ones on another processor.

    Float arithmetic differs by rounding; an int8 network may round a hidden value to the next step, which moves a
    logit by some hundredths of the range of all logits.
    """
    spread = float(np.max(logits) - np.min(logits))
    return {"float32": 1e-4, "float16": 1e-2, "int8": 5e-2}[precision] * max(1.0, spread)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest.json` last: with the size and checksum of every file that is in the bundle then."""
    kit = kit_module()
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": kit.file_checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    whole = {
        "format_version": kit.FORMAT_VERSION,
        **manifest,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    kit.read_manifest(folder)


def read_bundle(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns a bundle's manifest after checking its version, its paths and every file's checksum.

    Raises:
        ValueError: the folder is no bundle, or was changed.
    """
    if not Path(folder).is_dir():
        raise ValueError(
            error_message("a bundle must be a folder", f"{os.fspath(folder)}, which is none", "Check the path.")
        )
    return kit_module().read_manifest(folder)
