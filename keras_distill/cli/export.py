"""Write a Keras model as ONNX and LiteRT files, each reloaded in its runtime and compared with the model."""

import argparse

from keras_distill.cli import data_options, model_file

SUMMARY = "write a Keras model as ONNX and LiteRT files"
FORMATS = ("onnx", "litert")
NUM_RANDOM_INPUTS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL.keras", help="the model to write")
    parser.add_argument("--to", nargs="+", choices=FORMATS, default=list(FORMATS), help="formats (default: all)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the files, named after the model")
    data_options.add_data_arguments(
        parser, required=False, purpose="to compare on, and whose class names go into the files: "
    )
    parser.add_argument("--from-probabilities", action="store_true", help="a subclassed model gives probabilities")
    parser.add_argument("--batch", type=int, help="examples a call, fixed (default: open where the model allows)")
    model_file.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exports, verifies, and moves into place what holds. Exit code 1 where a file does not answer as the model."""
    import shutil
    import tempfile
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from keras_distill import __version__
    from keras_distill._files import check_writable, whole_file
    from keras_distill._inputs import take_rows
    from keras_distill.cli.random_inputs import random_feed
    from keras_distill.deploy import to_litert, to_onnx, verify
    from keras_distill.deploy.trace import signature_of
    from keras_distill.deploy.verify import open_artifact

    check_writable(Path(arguments.out) / "model")
    model = model_file.load(arguments.model, arguments)
    dataset = data_options.load(arguments) if arguments.data else None
    example = take_rows(dataset.test.inputs, slice(1)) if dataset else None
    signature = signature_of(model, example)
    feed = signature.feed(dataset.test.inputs) if dataset else random_feed(signature, NUM_RANDOM_INPUTS)
    options = {
        "example": example,
        "batch": arguments.batch,
        "from_logits": not arguments.from_probabilities,
        "class_names": dataset.class_names if dataset else None,
        "provenance": {"source": Path(arguments.model).name, "made_by": f"keras-distill {__version__}"},
    }
    makers = {"onnx": (to_onnx, ".onnx"), "litert": (to_litert, ".tflite")}
    compared_on = f"the test set of {dataset.name}" if dataset else "random inputs"
    table = Table(title=f"{Path(arguments.model).name}, compared on {compared_on}")
    for column in ("file", "bytes", "largest error", "same answers", "verdict"):
        table.add_column(column, justify="left" if column in ("file", "verdict") else "right")
    held = True
    console = Console()
    with tempfile.TemporaryDirectory(prefix="keras-distill-export-") as folder:
        made = []
        for format_name in dict.fromkeys(arguments.to):
            make, suffix = makers[format_name]
            name = Path(arguments.model).stem + suffix
            with console.status(f"converting to {name}"):
                path = make(model, Path(folder) / name, **options)
                # Which of several outputs the labels belong to, nobody has said.
                is_only = len(open_artifact(path).output_names) == 1
                report = verify(
                    model,
                    path,
                    feed,
                    dataset.test.labels if dataset and is_only else None,
                    from_logits=not arguments.from_probabilities,
                )
            held &= report.holds
            made.append(path)
            verdict = "; ".join(report.problems or report.remarks) or "ok"
            size, error, agreement = path.stat().st_size, report.max_abs_error, report.argmax_agreement
            table.add_row(name, f"{size:,}", f"{error:.1e}", f"{agreement:.2%}", verdict)
        if held:
            for path in made:
                with whole_file(Path(arguments.out) / path.name) as aside:
                    shutil.copyfile(path, aside)
    console.print(table)
    if not held:
        console.print("Nothing was written: a file does not answer as the model does.")
    return 0 if held else 1
