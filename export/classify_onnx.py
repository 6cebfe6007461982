"""The smallest program that uses a bundle with onnxruntime: copy it, and put your own input where the file is read.

python classify_onnx.py                # the golden inputs
python classify_onnx.py EXAMPLES.npy   # (num_examples, …) as the manifest's `inputs` say; of several .npz
python classify_onnx.py ROWS.csv       # raw rows, where the bundle has preparation.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from prepare import inputs_from

BUNDLE = Path(__file__).resolve().parent


def main():
    """Prints the three most probable classes of every example."""
    manifest = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    artifacts = manifest["artifacts"]
    artifact = artifacts.get("onnx-int8") or artifacts["onnx"]
    session = onnxruntime.InferenceSession(BUNDLE / artifact["file"], providers=["CPUExecutionProvider"])
    inputs = inputs_from(sys.argv[1] if len(sys.argv) > 1 else BUNDLE / "golden.npz", manifest, BUNDLE)
    logits = session.run(manifest["outputs"][:1], inputs)[0] / manifest["temperature"]
    logits = np.pad(logits, ((0, 0), (int(logits.shape[-1] == 1), 0)))  # one unit z is the pair (0, z)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    for row in probabilities:
        best = np.argsort(-row)[:3]
        print("   ".join(f"{manifest['class_names'][index]} {row[index]:.1%}" for index in best))


if __name__ == "__main__":
    main()
