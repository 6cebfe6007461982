"""`keras-distill distill --distribute data-parallel`: on all of JAX's devices, in one process or in one a host."""

from typing import TYPE_CHECKING

from keras_distill.cli import evaluation, model_file
from keras_distill.cli.engine_options import share_of

if TYPE_CHECKING:
    import argparse


def run(arguments: "argparse.Namespace") -> int:
    """Trains, saves and, in the first process, prints the table."""
    process, num_processes = share_of(arguments.process)

    import keras
    from rich.console import Console

    from keras_distill import data
    from keras_distill._files import whole_file
    from keras_distill.distillation.distiller import Distiller
    from keras_distill.losses import SoftTargets
    from keras_distill.scale import distributed
    from keras_distill.targets import SoftTargetStore, StoredBatches

    scope = distributed(
        "data-parallel", coordinator=arguments.coordinator, process=process, num_processes=num_processes
    )
    with whole_file(model_file.keras_file(arguments.out)) as aside:
        dataset = data.load(arguments.data)
        # Measured where one device holds a whole model: a test set need not be shared out evenly.
        student = model_file.load(arguments.student, arguments)
        evaluation.check_model_fits_dataset(student, dataset, "student")
        rows = [("student, as given", evaluation.measure(student, dataset.test))]
        if arguments.teacher:
            teacher = model_file.load_teacher(arguments, dataset)
            rows.insert(0, ("teacher", evaluation.measure(teacher, dataset.test)))
        store = SoftTargetStore.open(arguments.store) if arguments.store else None

        with scope:
            keras.utils.set_random_seed(arguments.seed)
            student = model_file.load(arguments.student, arguments)
            distiller = Distiller(
                None if store else model_file.load_teacher(arguments, dataset),
                student,
                SoftTargets(arguments.temperature),
                student_loss_weight=arguments.student_loss_weight,
            )
            options = {"batch_size": arguments.batch_size, "process": process, "num_processes": num_processes}
            batches = StoredBatches(evaluation.arrays_of(dataset.train), store, seed=arguments.seed, **options)
            validation = StoredBatches(evaluation.arrays_of(dataset.validation), None, shuffle=False, **options)
            schedule = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, arguments.epochs * len(batches))
            distiller.compile(
                keras.optimizers.Adam(schedule), loss=evaluation.label_loss(student), metrics=["accuracy"]
            )
            distiller.fit(
                batches,
                epochs=arguments.epochs,
                shuffle=False,
                validation_data=validation if len(validation) else None,
                verbose="auto" if process == 0 else 0,
            )
            student.save(aside)
        measured = evaluation.measure(model_file.load(str(aside), arguments), dataset.test)
    if process == 0:
        console = Console()
        console.print(evaluation.comparison_table([*rows, ("student, distilled", measured)], dataset))
        console.print(f"saved {arguments.out}")
    return 0
