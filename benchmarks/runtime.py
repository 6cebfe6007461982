"""Whether onnxruntime labels faster than Keras's own backend, on a processor. Makes a row of docs/store.md.

    python -m benchmarks.runtime [--write] [--json] [--rounds 5] [--items 768]

`label(…, runtime="onnxruntime")` against `label(…, runtime="keras")` of the same items in batches of 64, with random
weights: MobileNetV3Small at 96 × 96 × 3 and a small ConvNet (32 and 64 channels) at 28 × 28 × 1. First the gate: the
file answers as the teacher does, and the two stores agree. Then the functions that label run by turns, over all items,
without the conversion, which is paid once. About two minutes on one core.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.page import table, write_part
from benchmarks.rounds import machine, use_one_thread

if TYPE_CHECKING:
    import keras


def models() -> dict[str, "keras.Model"]:
    """Teachers by name."""
    import keras

    from keras_distill.data import networks

    keras.utils.set_random_seed(0)
    mobile = keras.applications.MobileNetV3Small((96, 96, 3), weights=None, classes=100, classifier_activation=None)
    # Random weights make logits that are all but 0, which any file would answer: they are stretched to vary by 1. (With
    # the data's own statistics in its normalisations such a network multiplies rounding, and the gate refuses it.)
    images = np.random.default_rng(1).random((64, 96, 96, 3), dtype="float32")
    head = [layer for layer in mobile.layers if layer.get_weights()][-1]
    kernel, bias = head.get_weights()
    head.set_weights([kernel / float(np.std(mobile(images, training=False))), bias])
    return {
        "MobileNetV3Small, 96 × 96": mobile,
        "a ConvNet of 32 and 64 channels, 28 × 28": networks.convnet((28, 28, 1), 10, (32, 64)),
    }


def measure(teacher: "keras.Model", num_items: int, num_rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of each round of each runtime; what the gate found beforehand."""
    from keras_distill.targets import label
    from keras_distill.targets.runtime import Runtimes, _seconds
    from keras_distill.targets.teacher_rows import RowOptions, row_function

    inputs = np.random.default_rng(0).random((num_items, *teacher.input_shape[1:]), dtype="float32")
    stores = {
        runtime: label(teacher, inputs, folder / runtime, dtype="float32", batch_size=64, runtime=runtime)
        for runtime in ("keras", "onnxruntime")
    }
    expected, found = (store.read(np.arange(num_items)) for store in stores.values())
    error = float(np.abs(found - expected).max())
    if np.std(expected) < 1e-2:
        raise SystemExit("parity shows nothing: the teacher says the same of everything")
    if error > 1e-3 * max(float(np.abs(expected).max()), 1.0):
        raise SystemExit(f"parity failed: stored logits differ by {error:.1e}")
    # The very functions that label, batch by batch.
    batches = [inputs[start : start + 64] for start in range(0, num_items, 64)]
    tensors = [_tensor(batch) for batch in batches]
    options = RowOptions(dtype="float32")
    own = row_function(teacher, tensors[0], options)
    runtimes = Runtimes("onnxruntime", teacher, True)
    other = runtimes.forward_of("onnxruntime", own, tensors[:1], options)
    forwards = {"keras": own, "onnxruntime": other}
    wall: dict[str, list[float]] = {name: [] for name in forwards}
    cpu: dict[str, list[float]] = {name: [] for name in forwards}
    for number in range(num_rounds + 1):
        for name, forward in forwards.items():
            began = time.process_time()
            seconds = sum(_seconds(forward, tensors[start : start + 3]) for start in range(0, len(tensors), 3))
            if number:
                wall[name].append(seconds)
                cpu[name].append(time.process_time() - began)
    return {"largest_difference": error, "wall": wall, "cpu": cpu, "num_items": num_items}


def _tensor(batch: np.ndarray) -> Any:
    import keras

    return keras.ops.convert_to_tensor(batch)


def page_part(result: dict[str, Any]) -> str:
    """The generated part of docs/store.md."""
    rows = []
    for name, found in result["models"].items():
        wall = min(found["wall"]["keras"]) / min(found["wall"]["onnxruntime"])
        cpu = statistics.median(found["cpu"]["keras"]) / statistics.median(found["cpu"]["onnxruntime"])
        rate = found["num_items"] / min(found["wall"]["onnxruntime"])
        rows.append([name, f"{wall:.2f}", f"{cpu:.2f}", f"{rate:,.0f}", f"{found['largest_difference']:.0e}"])
    header = ["teacher", "times as fast, elapsed time", "processor time", "items/s", "stored logits differ by at most"]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    notes = (
        f"{result['rounds']} interleaved rounds after one of warm-up, batches of 64: the fastest in elapsed time, the "
        f"medians in processor time. Load at the start {result['load']:.0f}; {where}."
    )
    return "\n".join([table(header, rows), notes])


def main() -> None:
    """Prints the table, or the figures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put the table into docs/store.md")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=768)
    arguments = parser.parse_args()
    use_one_thread()
    import os

    result: dict[str, Any] = {"machine": machine(), "rounds": arguments.rounds, "load": os.getloadavg()[0]}
    result["models"] = {}
    for name, teacher in models().items():
        with tempfile.TemporaryDirectory() as folder:
            result["models"][name] = measure(teacher, arguments.items, arguments.rounds, Path(folder))
    print(json.dumps(result, indent=2, ensure_ascii=False) if arguments.json else page_part(result))
    if arguments.write:
        write_part("store.md", "runtime", page_part(result))


if __name__ == "__main__":
    main()
