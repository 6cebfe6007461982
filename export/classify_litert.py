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
    if len(sys.argv) > 1:
        name = manifest["inputs"][0]["name"]
        inputs = {name: np.load(sys.argv[1]).astype(manifest["inputs"][0]["dtype"])}
    num_examples = len(next(iter(inputs.values())))
    # One at a time: that works for every student, also for recurrent ones, whose batch is fixed.
    ones = ({name: array[i : i + 1] for name, array in inputs.items()} for i in range(num_examples))
    logits = np.concatenate([classify(**one)["logits"] for one in ones]) / manifest["temperature"]
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    for row in probabilities:
        best = np.argsort(-row)[:3]
        print("   ".join(f"{manifest['class_names'][index]} {row[index]:.1%}" for index in best))


if __name__ == "__main__":
    main()
