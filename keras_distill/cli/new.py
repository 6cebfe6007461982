"""Make a network of ours as a .keras file: fresh, to be a student, or trained on labels, to be a teacher.

For trying things out; your own Keras models are what the other commands are for.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_distill.cli import data_options

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset

SUMMARY = "make a small network: fresh, or trained on labels"
KINDS = ("convnet", "mlp", "separable_convnet", "text_bag", "text_conv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("out", metavar="MODEL.keras", help="the file to write; must not be there yet")
    add("--like", choices=KINDS, default="convnet", help="the kind of network (default: %(default)s)")
    add("--widths", type=int, nargs="+", metavar="N",
        help="channels or units of its layers; of texts, size of a token's vector and width of the layer over them "
        "(default: the kind's own)")  # fmt: skip
    data_options.add_data_arguments(parser)
    add("--epochs", type=int, default=0, help="train so long on labels (default: %(default)s, fresh weights)")
    add("--batch-size", type=int, default=32, help="items a step (default: %(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="Adam's, with cosine decay to zero (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the weights and of the shuffling (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Builds, trains where that is asked for, and saves."""
    from pathlib import Path

    import keras
    from rich.console import Console

    from keras_distill._checks import check_count, check_positive, error_message
    from keras_distill._files import check_writable, whole_file
    from keras_distill._progress import progress_bar
    from keras_distill.cli import evaluation
    from keras_distill.data import networks

    check_count("--epochs", arguments.epochs, 0)
    check_count("--batch-size", arguments.batch_size)
    check_positive("--learning-rate", arguments.learning_rate, "Adam is used to 1e-3.")
    for width in arguments.widths or ():
        check_count("--widths", width)
    path = Path(arguments.out)
    if path.suffix != ".keras":
        raise ValueError(error_message("MODEL.keras must end in .keras", repr(arguments.out)))
    if path.exists():
        raise ValueError(error_message("MODEL.keras must be a new file", f"{path}, which exists", "Name another one."))
    check_writable(path)
    dataset = data_options.load(arguments)
    keras.utils.set_random_seed(arguments.seed)
    if arguments.like.startswith("text_"):
        model = _text_network(arguments.like, dataset, arguments.widths)
    else:
        options = {"widths": tuple(arguments.widths)} if arguments.widths else {}
        model = getattr(networks, arguments.like)(dataset.input_shape, dataset.num_classes, **options)
    if arguments.epochs:
        num_steps = arguments.epochs * -(-len(dataset.train) // arguments.batch_size)
        schedule = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, num_steps)
        model.compile(keras.optimizers.Adam(schedule), evaluation.label_loss(model))
        model.optimizer.build(model.trainable_variables)
        with progress_bar("training", arguments.epochs, None, unit="epochs") as advance:
            each = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: advance(1))
            model.fit(
                *evaluation.arrays_of(dataset.train),
                batch_size=arguments.batch_size,
                epochs=arguments.epochs,
                callbacks=[each],
                verbose=0,
            )
    with whole_file(path) as aside:
        model.save(aside)
    console = Console(highlight=False)
    if arguments.epochs:
        from keras_distill.models.inference import all_logits

        found = evaluation.measured(all_logits(model, dataset.test.inputs), dataset.test.labels)
        console.print(evaluation.comparison_table([(path.stem, found)], dataset))
    console.print(f"saved {path}: {model.count_params():,} parameters", markup=False, soft_wrap=True)
    return 0


def _text_network(kind: str, dataset: "Dataset", widths: "Sequence[int] | None") -> "keras.Model":
    from keras_distill._checks import error_message
    from keras_distill.data import networks

    preparation = dataset.preparation
    if preparation is None or preparation.kind != "text":
        remedy = "Name the column of texts, --text COLUMN, or a folder of .txt files."
        raise ValueError(error_message(f"--like {kind} must be given texts", dataset.name, remedy))
    if len(widths or ()) > 2:
        remedy = "The first is the size of a token's vector, the second the width of the layer over them."
        raise ValueError(error_message(f"--widths of {kind} must be two numbers at most", len(widths or ()), remedy))
    if preparation.specification["padding"] != 0:
        received = f"{preparation.specification['padding']} by this tokenizer.json"
        raise ValueError(error_message(f"--like {kind} must be padded with id 0", received, "Leave --tokenizer out."))
    length, vocabulary_size = (preparation.specification[name] for name in ("length", "vocabulary_size"))
    width, layer_width = (*(widths or ()), *(32, 128)[len(widths or ()) :])
    if kind == "text_bag":
        return networks.text_bag(length, vocabulary_size, dataset.num_classes, width, hidden_width=layer_width)
    return networks.text_conv(length, vocabulary_size, dataset.num_classes, width, num_filters=layer_width)
