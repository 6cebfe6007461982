"""Run your teacher over a dataset once and store its soft targets; training then reads them in its place.

The training split is labelled; an item's id is its place in it. A killed run goes on where it stopped: give the
same command again. --workers 4 labels with four processes, --engine ray on a cluster; or start processes yourself,
with --process 0/4, 1/4, …

--folds 5 labels out of fold: whoever answers for an item was trained without it. The teacher's architecture is trained
anew for each fold, from fresh weights and on the labels; what is frozen in it stays. --make-teacher my_module:function
trains them your way: function(inputs, labels, fold) returns a teacher.
"""

import argparse

from keras_distill.cli import data_options, engine_options, evaluation, label_folds, model_file
from keras_distill.cli.engine_options import share_of

SUMMARY = "store your teacher's soft targets, once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--teacher", nargs="+", metavar="TEACHER", help=model_file.TEACHER_HELP)
    data_options.add_data_arguments(parser)
    add("--out", required=True, metavar="STORE", help="the store's folder; new, or one to go on with")
    add("--top-k", type=int, metavar="K", help="keep only the K largest logits of each item")
    add("--sample", type=int, metavar="K", help="keep K classes drawn of each item, right on average")
    add("--seed", type=int, default=0, help="of what is drawn: samples, folds, new weights (default: %(default)s)")
    add("--dtype", choices=("float16", "float32"), default="float16", help="of the logits (default: %(default)s)")
    add("--shift", type=int, metavar="PIXELS", help="label every shift of the images by up to so many pixels")
    add("--members", action="store_true", help="keep each of several teachers, for any temperature")
    add("--temperature", type=float, help="merge or --sample at this temperature, the only one then")
    add(
        "--calibrate",
        action="store_true",
        help="make the teacher as sure as it is right on the validation split, first",
    )
    add("--batch-size", type=int, default=256, help="items a forward pass (default: %(default)s)")
    add("--process", default="0/1", metavar="I/N", help="label the I-th of N shares, I from 0 (default: %(default)s)")
    add("--any-teacher", action="store_true", help="label even where the teacher answers no better than chance")
    add("--runtime", choices=("keras", "onnxruntime", "auto"), default="keras", help="what runs a Keras teacher; auto: "
        "on a processor, the faster one that answers alike (default: %(default)s)")  # fmt: skip
    label_folds.add_fold_arguments(parser)
    engine_options.add_engine_arguments(parser)
    model_file.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Labels, and says what is there."""
    process, num_processes = share_of(arguments.process)

    from rich.console import Console

    from keras_distill import targets

    label_folds.check(arguments)
    dataset = data_options.load(arguments)
    teacher, folds = None, {}
    if arguments.folds is None:
        teachers = []
        for path in arguments.teacher:
            teachers.append(model_file.load_teacher(path, arguments, dataset))
            evaluation.check_teacher(teachers[-1], path, dataset, insist=arguments.any_teacher)
        teacher = model_file.as_one_teacher(teachers)
    else:
        make_teacher = label_folds.maker_of(arguments, dataset)
        folds = {"folds": arguments.folds, "fold_seed": arguments.seed, "make_teacher": make_teacher}
    shift = None if arguments.shift is None else targets.Shift(arguments.shift, exhaustive=True)
    store = targets.label(
        teacher,
        dataset.train,
        arguments.out,
        top_k=arguments.top_k,
        sample=arguments.sample,
        seed=arguments.seed,
        dtype=arguments.dtype,
        augmentation=None if shift is None else targets.Augmentation(shift),
        members=arguments.members,
        temperature=arguments.temperature,
        calibrate=dataset.validation if arguments.calibrate else False,
        batch_size=arguments.batch_size,
        process=process,
        num_processes=num_processes,
        engine=engine_options.engine_from(arguments),
        runtime=arguments.runtime,
        progress=True,
        **folds,
    )
    # No markup: a folder's name may hold brackets.
    if store is None:
        Console().print(f"share {arguments.process} of {arguments.out} is done; others are yet to finish", markup=False)
    else:
        num_bytes = store.manifest.num_bytes
        Console().print(f"{store} finished, {num_bytes / 1e6:,.1f} MB", markup=False, highlight=False, soft_wrap=True)
        if folds:
            found = evaluation.check_store(store, arguments.out, dataset, insist=arguments.any_teacher)
            Console().print(f"the teachers, on items that they had not seen: {found}", soft_wrap=True)
    return 0
