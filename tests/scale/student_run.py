"""One small distillation, run in a process of its own on any backend and any number of devices: what it ends with.

    python student_run.py OUT.npz [--distribute mirrored|data-parallel] [--process I/N --coordinator HOST:PORT] …

The tests compare the files of two runs. Every part of the objective is in it: hard labels, soft targets, features,
sample weights, a regulariser; and a last batch that is smaller than the others.
"""

import argparse
import contextlib
import os
import signal
import sys

import numpy as np

NUM_ITEMS, BATCH_SIZE, CLASSES = 104, 32, 4


def arrays(num_items=NUM_ITEMS):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(num_items, 6)).astype("float32")
    y = generator.integers(0, CLASSES, num_items)
    weights = generator.uniform(0.2, 2.0, num_items).astype("float32")
    return x, y, weights


def net(seed, units, regularised=False):
    """A net whose weights depend on nothing but NumPy's generator."""
    import keras

    inputs = keras.Input((6,))
    regulariser = keras.regularizers.L2(1e-2) if regularised else None
    hidden = keras.layers.Dense(units, "tanh", kernel_regularizer=regulariser, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))
    generator = np.random.default_rng(seed)
    model.set_weights([generator.normal(size=weight.shape).astype("float32") / 2 for weight in model.weights])
    return model


def distiller_of(teacher, student):
    import keras

    import keras_distill as kd

    made = kd.Distiller(
        teacher,
        student,
        [kd.losses.SoftTargets(3.0), kd.losses.Hint("hidden")] if teacher is not None else kd.losses.SoftTargets(3.0),
        student_loss_weight=0.3,
    )
    generator = np.random.default_rng(3)
    for layer in made.auxiliary_layers:
        # A backend's own random numbers would begin its projector elsewhere than another's.
        layer.set_weights([generator.normal(size=weight.shape).astype("float32") / 3 for weight in layer.weights])
    made.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return made


def data_parallel():
    """Keras's data parallelism over all devices of all processes, each of which brings its own part of a batch."""
    import keras

    return keras.distribution.DataParallel(auto_shard_dataset=False)


def scope_of(distribute):
    if distribute == "mirrored":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
    return data_parallel().scope() if distribute == "data-parallel" else contextlib.nullcontext()


def own_part(values, process, num_processes):
    """What one of several processes brings: its share of every batch, in order."""
    parts = []
    for start in range(0, len(values), BATCH_SIZE):
        batch = values[start : start + BATCH_SIZE]
        share = len(batch) // num_processes
        parts.append(batch[process * share : (process + 1) * share])
    return np.concatenate(parts)


def callbacks_of(arguments, batches):
    import keras

    from keras_distill import Backup

    def die(epoch, logs):
        if epoch + 1 == arguments.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    kept = [Backup(arguments.backup, batches=batches)] if arguments.backup else []
    return [*kept, keras.callbacks.LambdaCallback(on_epoch_end=die)]


class _Absent:
    """Makes a package as if it were not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}: this run is to do without", name=name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--distribute")
    parser.add_argument("--store", help="where soft targets come from; without it the teacher runs beside the student")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--coordinator")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--backup", help="where the state of a killed run is kept")
    parser.add_argument("--die-after", type=int, help="kill this process once so many epochs are done")
    parser.add_argument("--without", help="a package that this run must do without")
    arguments = parser.parse_args()
    if arguments.without:
        sys.meta_path.insert(0, _Absent(arguments.without))

    import keras

    if arguments.coordinator:
        keras.distribution.initialize(arguments.coordinator, arguments.num_processes, arguments.process)
    x, y, weights = arrays()
    with scope_of(arguments.distribute):
        teacher = None if arguments.store else net(1, 12)
        student = net(2, 5, regularised=True)
        distiller = distiller_of(teacher, student)
        if arguments.store:
            from keras_distill import targets

            share = {"process": arguments.process, "num_processes": arguments.num_processes}
            batches = targets.attach((x, y, weights), arguments.store, batch_size=BATCH_SIZE, seed=5, **share)
            history = distiller.fit(
                batches,
                epochs=arguments.epochs,
                shuffle=False,
                verbose=0,
                callbacks=callbacks_of(arguments, batches),
            ).history
        else:
            mine = [own_part(values, arguments.process, arguments.num_processes) for values in (x, y, weights)]
            history = distiller.fit(
                *mine[:2],
                sample_weight=mine[2],
                batch_size=BATCH_SIZE // arguments.num_processes,
                epochs=arguments.epochs,
                shuffle=False,
                verbose=0,
            ).history
        mine = [own_part(values, arguments.process, arguments.num_processes) for values in (x, y)]
        evaluated = distiller.evaluate(
            *mine, batch_size=BATCH_SIZE // arguments.num_processes, verbose=0, return_dict=True
        )
    results = {f"weight {place}": weight for place, weight in enumerate(student.get_weights())}
    results |= {f"history {name}": values for name, values in history.items()}
    results |= {f"evaluated {name}": value for name, value in evaluated.items()}
    if arguments.process == 0:
        if arguments.out.endswith(".keras"):
            student.save(arguments.out)
        else:
            np.savez(arguments.out, **results)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
