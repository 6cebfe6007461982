"""The smallest program that uses a bundle with LiteRT: copy it, and put your own input where the file is read.

python classify_litert.py                # the golden inputs
python classify_litert.py EXAMPLES.npy   # (num_examples, …) in the student's own units: see `inputs` in manifest.json
"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

BUNDLE = Path(__file__).resolve().parent


def main():
    """Prints the three most probable classes of every example."""
    manifest = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    artifacts = manifest["artifacts"]
    artifact = artifacts.get("litert-int8") or artifacts["litert"]
    classify = Interpreter(str(BUNDLE / artifact["file"]), num_threads=1).get_signature_runner()
    golden = np.load(BUNDLE / "golden.npz")
    inputs = {entry["name"]: golden["input/" + entry["name"]] for entry in manifest["inputs"]}
    name, dtype = manifest["inputs"][0]["name"], manifest["inputs"][0]["dtype"]
    if len(sys.argv) > 1:
        inputs = {name: np.load(sys.argv[1]).astype(dtype, casting="same_kind")}
    # One at a time: that works for every student, also for recurrent ones, whose batch is fixed.
    ones = ({name: array[i : i + 1] for name, array in inputs.items()} for i in range(len(inputs[name])))
    logits = np.concatenate([classify(**one)[manifest["outputs"][0]] for one in ones]) / manifest["temperature"]
    logits = np.pad(logits, ((0, 0), (int(logits.shape[-1] == 1), 0)))  # one unit z is the pair (0, z)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    for row in probabilities:
        best = np.argsort(-row)[:3]
        print("   ".join(f"{manifest['class_names'][index]} {row[index]:.1%}" for index in best))


if __name__ == "__main__":
    main()
