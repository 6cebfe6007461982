"""A bundle: artifacts, golden answers and the kit in one folder, described by `manifest.json`.

The manifest's fields are documented in the kit's README; what reads and checks them is the kit's `benchmark.py`,
so that a device refuses what we refuse.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import error_message
from keras_distill._kit import kit_folder, kit_module
from keras_distill.deploy.answers import as_rows, without_ruled_out

if TYPE_CHECKING:
    from keras_distill.data import Preparation

KIT_FILES = (
    "README.md",
    "benchmark.py",
    "prepare.py",
    "readers.py",
    "sound.py",
    "classify_onnx.py",
    "classify_litert.py",
    "requirements-onnx.txt",
    "requirements-litert.txt",
    "requirements-tflm.txt",
)
TFLM = "tflm"
PREPARATION, TOKENIZER = "preparation.json", "tokenizer.json"
WEB_FILES = ("index.html", "page.js", "bundle.js", "image.js", "sound.js", "text.js", "style.css")


def check_replaceable(path: Path) -> None:
    """Raises `ValueError` where `path` holds what no earlier `ship` wrote: it would be deleted."""
    is_bundle = all((path / name).is_file() for name in ("manifest.json", "golden.npz"))
    if is_bundle or (path.is_dir() and not any(path.iterdir())) or not (path.exists() or path.is_symlink()):
        return
    received = f"{path}, which holds something else"
    raise ValueError(
        error_message("the bundle's folder must be new or hold an older bundle", received, "Choose another name.")
    )


def write_kit(folder: Path, *, web: bool = False, tflm: bool = False) -> None:
    """Copies the kit into a bundle; its web page, or what is for microcontrollers, only where it is asked for."""
    for name in KIT_FILES:
        shutil.copyfile(kit_folder() / name, folder / name)
    if tflm:
        (folder / TFLM).mkdir()
        shutil.copyfile(kit_folder() / TFLM / "main.cc", folder / TFLM / "main.cc")
    if web:
        (folder / "web").mkdir()
        for name in WEB_FILES:
            shutil.copyfile(kit_folder() / "web" / name, folder / "web" / name)


def write_preparation(folder: Path, preparation: "Preparation | None") -> dict[str, str] | None:
    """Writes `preparation.json`, where the data set was prepared from raw rows; what the manifest says of it.

    A tokeniser becomes a file of its own, `tokenizer.json`, which libraries of other languages read too.

    Returns:
        `{"file", "kind", "description"}`, or `None` where there is nothing to prepare.
    """
    if preparation is None:
        return None
    specification = preparation.to_json()
    if "tokenizer" in specification:
        tokenizer = json.dumps(specification["tokenizer"], separators=(",", ":"), ensure_ascii=False)
        (folder / TOKENIZER).write_text(tokenizer + "\n", encoding="utf-8")
        specification["tokenizer"] = TOKENIZER
    text = json.dumps(specification, indent=1, ensure_ascii=False)
    (folder / PREPARATION).write_text(text + "\n", encoding="utf-8")
    return {"file": PREPARATION, "kind": preparation.kind, "description": preparation.description}


def choose_golden(labels: np.ndarray, num_golden: int = 16) -> np.ndarray:
    """Positions of examples of as many classes as can be, int `(num_golden,)`, ascending; fewer where there are fewer.

    The files of an image folder come class by class: its first sixteen examples would be of one.

    Args:
        labels: integers, `(num_items,)`.
        num_golden: how many are wanted.

    Example:
        >>> choose_golden(np.array([0, 0, 0, 0, 1, 1, 2, 2]), 4).tolist()
        [0, 1, 4, 6]
    """
    order = np.argsort(labels, kind="stable")
    classes = labels[order]
    rank_in_class = np.arange(len(order)) - np.searchsorted(classes, classes)
    # First an example of each class, then another of each, and so on.
    by_turns = order[np.lexsort((classes, rank_in_class))]
    num_classes = int(np.count_nonzero(rank_in_class == 0))
    if num_classes > num_golden:
        by_turns = by_turns[np.linspace(0, num_classes - 1, num_golden).round().astype(int)]
    return np.sort(by_turns[:num_golden])


def golden_entries(source: str, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The golden outputs of Keras or of an artifact under their names in `golden.npz`: `SOURCE`, or `SOURCE/OUTPUT`.

    Example:
        >>> list(golden_entries("onnx", {"logits": np.zeros(1)}))
        ['onnx']
        >>> list(golden_entries("onnx", {"kind": np.zeros(1), "size": np.zeros(1)}))
        ['onnx/kind', 'onnx/size']
    """
    is_only = len(outputs) == 1
    return {source if is_only else f"{source}/{name}": output for name, output in outputs.items()}


def write_golden(
    folder: Path, inputs: Mapping[str, np.ndarray], labels: np.ndarray, outputs: Mapping[str, np.ndarray]
) -> None:
    """Writes `golden.npz`: some real inputs, their labels, and what Keras and every artifact answered.

    Args:
        folder: the bundle.
        inputs: `{input name: (num_golden, ...)}`.
        labels: `(num_golden,)`.
        outputs: `{"keras" or artifact's name: (num_golden, num_classes)}`, as `golden_entries` names them.
    """
    arrays = {f"input/{name}": array for name, array in inputs.items()}
    arrays |= {f"logits/{name}": array for name, array in outputs.items()}
    np.savez(folder / "golden.npz", labels=labels, **arrays)  # type: ignore[arg-type]  # see NumPy's stub of savez


def golden_tolerance(precision: str, output: np.ndarray) -> float:
    """How far an artifact's output may lie from its own golden one on another processor.

    Float arithmetic differs by rounding; an int8 network may round a hidden value to the next step, which moves a
    logit by some hundredths of the range of all logits.
    """
    output, _ = without_ruled_out(as_rows(output), as_rows(output))
    scale = float(np.max(output) - np.min(output)) or float(np.max(np.abs(output)))
    # Of what is all but constant, rounding is a share of what it was summed up from.
    return {"float32": 1e-4, "float16": 1e-2, "int8": 5e-2}[precision] * max(0.01, scale)


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
