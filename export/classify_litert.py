"""The smallest program that uses a bundle with LiteRT: copy it, and put your own input where the files are read.

python classify_litert.py                     # the golden examples, each ✓ or ✗
python classify_litert.py CAT.png DOG.jpg     # pictures; or SEVEN.wav, ROWS.csv, LINES.txt, "a text"
python classify_litert.py EXAMPLES.npy        # (num_examples, …) as the manifest's `inputs` say; of several .npz
"""

from pathlib import Path

import numpy as np
from readers import read_bundle, read_examples, run

BUNDLE = Path(__file__).resolve().parent


def main(files):
    """Prints the three most probable classes of every example."""
    from ai_edge_litert.interpreter import Interpreter

    manifest, path = read_bundle(BUNDLE, "litert-int8", "litert", "litert-float16")
    classify = Interpreter(path, num_threads=1).get_signature_runner()
    for name, label, inputs in read_examples(files, manifest, BUNDLE):
        logits = classify(**inputs)[manifest["outputs"][0]][0] / manifest["temperature"]
        logits = logits if len(logits) > 1 else np.array([0.0, logits[0]])  # one unit z is the pair (0, z)
        exponentials = np.exp(logits - logits.max())
        best = np.argsort(-exponentials)[:3]
        told = "   ".join(f"{manifest['class_names'][at]} {exponentials[at] / exponentials.sum():.1%}" for at in best)
        right = "" if label is None else "✓ " if label == best[0] else f"✗ it is {manifest['class_names'][label]}, "
        print(f"{told}   {right}({name})")


if __name__ == "__main__":
    run(main, __doc__)
