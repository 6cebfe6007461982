"""What people have, as a student's inputs: pictures, recordings, rows, texts and arrays. Needs numpy, and Pillow for
pictures.

    for name, label, inputs in read_examples(["cat.png", "rows.csv"], manifest, bundle): ...
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from prepare import inputs_from
from sound import read_wav, sound_of

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")


def run(main, description):
    """Runs a program with its arguments; an error is one sentence on standard error and exit code 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="what to classify; nothing: the golden examples")
    arguments = parser.parse_args()
    try:
        main(arguments.files)
    except ImportError as error:
        requirement = "pillow" if error.name == "PIL" else "-r the requirements file that came with the bundle"
        sys.exit(_told(f"{error.name} must be installed; got none. pip install {requirement}."))
    except (ValueError, OSError) as error:
        sys.exit(_told(error))


def _told(error):
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def read_bundle(bundle, *targets):
    """Returns the manifest of a folder and the path of its first artifact among `targets`."""
    path = Path(bundle) / "manifest.json"
    if not path.is_file():
        raise ValueError(f"a bundle must hold manifest.json; got {bundle}. Run the program where the bundle is.")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    found = [manifest["artifacts"][target]["file"] for target in targets if target in manifest["artifacts"]]
    if not found:
        held = ", ".join(manifest["artifacts"])
        others = "classify_onnx.py is for onnx, classify_litert.py for litert; benchmark.py checks every kind, tflm too"
        raise ValueError(f"the bundle must hold one of {', '.join(targets)}; got {held}. {others}.")
    return manifest, str(Path(bundle) / found[0])


def read_examples(files, manifest, bundle):
    """Yields a name, the index of the right class or None, and the inputs `{input name: (1, …)}` of each example.

    Args:
        files: paths, or texts for a student of texts; without any the golden examples, whose classes are known.
        manifest: the bundle's.
        bundle: its folder.

    Raises ValueError for a file that is not what the student takes.
    """
    labels = None
    if not files:
        files = [str(Path(bundle) / "golden.npz")]
        with np.load(files[0], allow_pickle=False) as golden:
            labels = golden["labels"].tolist()
    for file in files:
        suffix = Path(file).suffix.lower()
        if suffix in PICTURES or suffix == ".wav":
            if not Path(file).is_file():
                raise ValueError(f"{file} must be a file; got none. Check the path.")
            entry = _only_input(manifest, file)
            example = picture_of(file, entry) if suffix in PICTURES else sound_of(*read_wav(file), manifest, entry)
            yield Path(file).name, None, {entry["name"]: example[None]}
            continue
        inputs = inputs_from(file, manifest, bundle)
        for row in range(len(next(iter(inputs.values())))):
            name = f"{Path(file).name}, {row}" if Path(file).is_file() else file
            yield name, labels and labels[row], {key: array[row : row + 1] for key, array in inputs.items()}


def _only_input(manifest, file):
    if len(manifest["inputs"]) != 1:
        names = ", ".join(entry["name"] for entry in manifest["inputs"])
        raise ValueError(f"a student of several inputs must be given a .npz of {names}; got {file}.")
    return manifest["inputs"][0]


def picture_of(path, entry):
    """Returns a picture as the input `entry` of a manifest, `(height, width, channels)`: of its size and range.

    It is turned upright where EXIF says how, put before black where it is transparent, and stretched to the size of the
    input, as keras-distill reads the files that it trains on. Files of 16 bits are refused.
    """
    shape = entry["shape"][1:]
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"this student takes {entry['dtype']} of shape {tuple(shape)}, no pictures; got {path}.")
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
                raise ValueError(f"{path} must hold one picture; got {opened.n_frames}. Save each as a file.")
            image = ImageOps.exif_transpose(opened)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} must be a readable picture; got {error}. Save it again.") from None
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{path} must have 8 bits a sample; got Pillow's mode {image.mode}. Save it with 8.")
    is_grey = image.mode in ("1", "L", "LA", "La")
    if "transparency" in image.info or image.mode[-1] in "Aa":
        layers = np.asarray(image.convert("RGBA")).astype("float64")
        colours = np.rint(layers[..., :3] * layers[..., 3:] / 255.0)
    else:
        colours = np.asarray(image.convert("RGB")).astype("float64")
    pixels = (colours / 255.0).astype("float32")
    if shape[-1] == 1:
        pixels = pixels[..., :1] if is_grey else pixels @ np.array([[0.299], [0.587], [0.114]], "float32")
    size = (shape[1] or pixels.shape[1], shape[0] or pixels.shape[0])
    channels = [
        Image.fromarray(channel).resize(size, Image.Resampling.BILINEAR) for channel in np.moveaxis(pixels, -1, 0)
    ]
    low, high = entry.get("pixel_range") or entry["value_range"]
    scaled = low + np.stack([np.asarray(channel) for channel in channels], -1) * (high - low)
    return (np.rint(scaled) if "int" in entry["dtype"] else scaled).astype(entry["dtype"])
