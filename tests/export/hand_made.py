"""A bundle made by hand, of an ONNX file of one product: what a device gets, without the minute that shipping takes."""

import numpy as np

from keras_distill.deploy import bundle as deploy_bundle


def write_bundle(folder, **changes):
    """Writes a bundle of an 8 × 8 × 1 image classifier to `folder`; `changes` go into its manifest."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(64, 3)).astype("float32")
    images = generator.uniform(size=(16, 8, 8, 1)).astype("float32")
    logits = images.reshape(16, 64) @ kernel
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "kernel"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 8, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(folder / "student.onnx"))
    deploy_bundle.write_golden(
        folder, {"image": images}, logits.argmax(-1).astype("int32"), {"keras": logits, "onnx": logits}
    )
    deploy_bundle.write_kit(folder, web=changes.get("web", False))
    artifact = {
        "file": "student.onnx",
        "bytes": (folder / "student.onnx").stat().st_size,
        "precision": "float32",
        "golden_tolerance": 1e-3,
    }
    manifest = {
        "name": "linear",
        "inputs": [
            {
                "name": "image",
                "shape": [None, 8, 8, 1],
                "dtype": "float32",
                # As of a test set whose images are neither quite black nor quite white anywhere.
                "value_range": [0.05, 0.9],
                "pixel_range": [0.0, 1.0],
            }
        ],
        "outputs": ["logits"],
        "class_names": ["ant", "bee", "cow"],
        "preprocessing": "none",
        "temperature": 2.0,
        "artifacts": {"onnx": artifact},
        **changes,
    }
    deploy_bundle.write_manifest(folder, manifest)
    return folder, images, logits


TEXTS = ["where is my card", "what is the fee", "top it up now, please"] * 4


def write_text_bundle(folder, *, tokenizer=None, **changes):
    """Writes a bundle of a classifier of texts: each token has a vote for each of three classes, and votes add up.

    Returns:
        The folder, the preparation, and the votes, float32 `(vocabulary_size, 3)`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from keras_distill.data.text import fit_texts

    preparation = fit_texts(TEXTS, tokenizer=tokenizer)
    length, vocabulary_size = (preparation.specification[name] for name in ("length", "vocabulary_size"))
    votes = np.random.default_rng(0).normal(size=(vocabulary_size, 3)).astype("float32")
    votes[0] = 0.0
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["votes", "inputs"], ["cast"]),
            helper.make_node("ReduceSum", ["cast", "axes"], ["logits"], keepdims=0),
        ],
        "votes",
        [helper.make_tensor_value_info("inputs", TensorProto.INT32, ["batch", length])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(votes, "votes"), numpy_helper.from_array(np.array([1], "int64"), "axes")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(folder / "student.onnx"))
    tokens = preparation(TEXTS)
    logits = votes[tokens].sum(axis=1)
    labels = logits.argmax(-1).astype("int32")
    deploy_bundle.write_golden(folder, {"inputs": tokens}, labels, {"keras": logits, "onnx": logits})
    deploy_bundle.write_kit(folder, web=changes.get("web", False))
    size = (folder / "student.onnx").stat().st_size
    artifact = {"file": "student.onnx", "bytes": size, "precision": "float32", "golden_tolerance": 1e-3}
    manifest = {
        "name": "votes",
        "inputs": [
            {
                "name": "inputs",
                "shape": [None, length],
                "dtype": "int32",
                "value_range": [0.0, float(vocabulary_size - 1)],
                "pixel_range": None,
            }
        ],
        "outputs": ["logits"],
        "class_names": ["card", "fee", "top_up"],
        "preprocessing": preparation.description,
        "preparation": deploy_bundle.write_preparation(folder, preparation),
        "temperature": 1.0,
        "artifacts": {"onnx": artifact},
        **changes,
    }
    deploy_bundle.write_manifest(folder, manifest)
    return folder, preparation, votes
