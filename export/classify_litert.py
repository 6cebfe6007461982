"""The smallest program that uses a bundle with LiteRT: copy it, and put your own input where the file is read.

python classify_litert.py                # the golden inputs
python classify_litert.py EXAMPLES.npy   # (num_examples, …) as the manifest's `inputs` say; of several .npz
python classify_litert.py ROWS.csv       # raw rows, where the bundle has preparation.json
"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from prepare import inputs_from

BUNDLE = Path(__file__).resolve().parent


def main():
    """Prints the three most probable classes of every example."""
    manifest = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    artifact = manifest["artifacts"].get("litert-int8") or manifest["artifacts"]["litert"]
    classify = Interpreter(str(BUNDLE / artifact["file"]), num_threads=1).get_signature_runner()
    inputs = inputs_from(sys.argv[1] if len(sys.argv) > 1 else BUNDLE / "golden.npz", manifest, BUNDLE)
    # One at a time: that works for every student, also for recurrent ones, whose batch is fixed.
    count = len(next(iter(inputs.values())))
    ones = ({name: array[i : i + 1] for name, array in inputs.items()} for i in range(count))
    logits = np.concatenate([classify(**one)[manifest["outputs"][0]] for one in ones]) / manifest["temperature"]
    logits = np.pad(logits, ((0, 0), (int(logits.shape[-1] == 1), 0)))  # one unit z is the pair (0, z)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    for row in probabilities:
        best = np.argsort(-row)[:3]
        print("   ".join(f"{manifest['class_names'][index]} {row[index]:.1%}" for index in best))


if __name__ == "__main__":
    main()
