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
