"""onnxruntime-web for the page of a bundle: three files, fetched once by npm, pinned by checksum, kept in a cache.

They are 14 MB of somebody else's code, so they are neither in the repository nor in the wheel.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from keras_distill._checks import error_message
from keras_distill._files import whole_folder

VERSION = "1.30.0"
CHECKSUMS = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
REMEDY = (
    f"Install npm and be on-line once, or pass --web-runtime DIR with the files of onnxruntime-web {VERSION} "
    f"({', '.join(CHECKSUMS)}), which are in `dist` of that npm package."
)


def web_runtime(folder: str | os.PathLike | None = None) -> Path:
    """Returns a folder with the three files of onnxruntime-web.

    Args:
        folder: where they are already; `None` looks into the cache (`KERAS_DISTILL_CACHE`, else
            `~/.cache/keras_distill`) and asks npm for them the first time.

    Raises:
        ValueError: a file is missing or is not the pinned one, or npm cannot bring it.
    """
    if folder is not None:
        _check(Path(folder))
        return Path(folder)
    cache = Path(os.environ.get("KERAS_DISTILL_CACHE") or Path.home() / ".cache" / "keras_distill")
    kept = cache / f"onnxruntime-web-{VERSION}"
    if kept.is_dir():
        _check(kept)
        return kept
    with tempfile.TemporaryDirectory(prefix="keras-distill-npm-") as temporary, whole_folder(kept) as aside:
        archive = _npm_pack(Path(temporary))
        with tarfile.open(archive) as package:
            for name in CHECKSUMS:
                member = package.extractfile(f"package/dist/{name}")
                if member is None:
                    raise ValueError(
                        error_message(f"the package onnxruntime-web must contain dist/{name}", "none", REMEDY)
                    )
                with open(aside / name, "wb") as file:
                    shutil.copyfileobj(member, file)
        _check(aside)
    return kept


def copy_web_runtime(source: Path, destination: Path) -> None:
    """Copies the three files into the folder of a bundle's page."""
    destination.mkdir(parents=True)
    for name in CHECKSUMS:
        shutil.copyfile(source / name, destination / name)


def _npm_pack(folder: Path) -> Path:
    command = [
        "npm",
        "pack",
        f"onnxruntime-web@{VERSION}",
        "--ignore-scripts",
        "--silent",
        "--pack-destination",
        str(folder),
    ]
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(error_message("npm must be able to fetch onnxruntime-web", str(error), REMEDY)) from error
    archives = list(folder.glob("*.tgz"))
    if process.returncode or not archives:
        last = (process.stderr.strip().splitlines() or ["no word"])[-1]
        raise ValueError(error_message("npm must be able to fetch onnxruntime-web", last, REMEDY))
    return archives[0]


def _check(folder: Path) -> None:
    for name, expected in CHECKSUMS.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(
                error_message(f"the web runtime's folder must contain {name}", f"{folder}, which has none", REMEDY)
            )
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        if checksum != expected:
            received = f"a file with the checksum {checksum[:12]}…"
            raise ValueError(error_message(f"{path} must come from onnxruntime-web {VERSION}", received, REMEDY))
