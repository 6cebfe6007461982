"""What a distilling step costs beside the student's own training and the teacher's inference.

    python -m benchmarks.step [--json] [--rounds 15]

Variants, interleaved in one process, of the paper's MNIST pair (MLP 784-1200-1200-10 teaching 784-800-800-10, batch
128, synthetic pixels, Keras's own compile defaults for all): the student's own `fit`; the teacher's inference over
the same batches (`tf.function`, compiled as the step is); our Distiller with the teacher beside the student; ours
with soft targets from memory. Parity first: with the same seed the last two end with the same loss.
"""

import argparse
import json

import numpy as np

from benchmarks.rounds import interleave, machine, median_ratio

BATCH_SIZE, NUM_STEPS, TEMPERATURE = 128, 100, 4.0
BESIDE_LIMIT, STORED_LIMIT = 1.10, 1.05


def measure(num_rounds: int) -> dict:
    """Runs the benchmark; the result as it is printed with `--json`."""
    import keras
    import tensorflow as tf

    import keras_distill as kd
    from keras_distill.data.networks import mlp

    generator = np.random.default_rng(0)
    x = generator.random((BATCH_SIZE * NUM_STEPS, 28, 28, 1), dtype=np.float32)
    y = generator.integers(0, 10, len(x))
    keras.utils.set_random_seed(0)
    teacher = mlp((28, 28, 1), 10, (1200, 1200))
    first = mlp((28, 28, 1), 10, (800, 800))
    logits = teacher.predict(x, batch_size=1024, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def student():
        twin = keras.models.clone_model(first)
        twin.set_weights(first.get_weights())
        return twin

    plain, beside, stored = student(), student(), student()
    distillers = {
        "beside": kd.Distiller(teacher, beside, kd.losses.SoftTargets(TEMPERATURE)),
        "stored": kd.Distiller(None, stored, kd.losses.SoftTargets(TEMPERATURE)),
    }
    for model in (plain, *distillers.values()):
        model.compile(keras.optimizers.Adam(1e-3), loss)
    batches = tf.data.Dataset.from_tensor_slices(x).batch(BATCH_SIZE, drop_remainder=True)
    infer = tf.function(lambda images: teacher(images, training=False), jit_compile=bool(plain.jit_compile))

    def teacher_inference():
        for images in batches:
            infer(images)

    def fit(model, targets):
        return model.fit(x, targets, batch_size=BATCH_SIZE, epochs=1, shuffle=False, verbose=0).history["loss"][-1]

    variants = {
        "student": lambda: fit(plain, y),
        "teacher": teacher_inference,
        "beside": lambda: fit(distillers["beside"], y),
        "stored": lambda: fit(distillers["stored"], {"labels": y, "soft_targets": logits}),
    }
    losses = {name: variants[name]() for name in ("beside", "stored")}
    difference = abs(losses["beside"] - losses["stored"]) / losses["beside"]
    if difference > 1e-4:
        raise SystemExit(f"parity failed: the two ways to the same loss differ by {difference:.1e}: {losses}")
    seconds = interleave(variants, num_rounds=num_rounds)
    return {
        "machine": machine(),
        "rounds": num_rounds,
        "steps_a_round": NUM_STEPS,
        "milliseconds_a_step": {name: 1e3 * float(np.median(times)) / NUM_STEPS for name, times in seconds.items()},
        "parity_relative_difference": difference,
        "beside_over_student_plus_teacher": median_ratio(seconds, "beside", "student", "teacher"),
        "stored_over_student": median_ratio(seconds, "stored", "student"),
        "limits": {"beside_over_student_plus_teacher": BESIDE_LIMIT, "stored_over_student": STORED_LIMIT},
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(" ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print(f"{result['rounds']} interleaved rounds of {NUM_STEPS} steps, after one of warm-up; medians")
    for name, value in result["milliseconds_a_step"].items():
        print(f"{name:10s} {value:7.3f} ms a step")
    for name, limit in result["limits"].items():
        print(f"{name}: {result[name]:.3f} (goal: at most {limit})")


if __name__ == "__main__":
    main()
