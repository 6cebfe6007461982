"""What the exact merge costs beside the paper's gradient descent, and how it grows.

    python -m benchmarks.combiner [--json] [--rounds 5]

Parity first: the objective against SciPy's optimum (L-BFGS on the logits of q, from two starts), 1 to 10 overlapping
specialists, logits up to ±50, at 10 and 12 steps. Then 100 classes, batch 256, 10 specialists of 10 classes: our 10
steps against gradient descent on the logits of q, with the best of seven learning rates and only as many steps as bring
the batch's mean distance below 1e-2 nats. Then 61 specialists from 10 to 15,000 classes, routed as
`SpecialistEnsemble` does it. Both sides are float32 `tf.function`s on the same threads.
"""

import argparse
import json
import resource
import statistics

import numpy as np

from benchmarks.rounds import interleave, machine, median_ratio

DISTANCE_LIMIT, SPEED_LIMIT, CLOSE_ENOUGH = 1e-6, 50.0, 1e-2
LEARNING_RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def random_case(
    seed: int, num_classes: int, num_specialists: int, scale: float, size: int | None = None, batch: int = 1
):
    generator = np.random.default_rng(seed)
    sizes = [size or int(generator.integers(1, num_classes // 2)) for _ in range(num_specialists)]
    class_sets = [generator.choice(num_classes, size, replace=False).tolist() for size in sizes]
    generalist = generator.uniform(-scale, scale, (batch, num_classes)).astype("float32")
    specialists = [generator.uniform(-scale, scale, (batch, size + 1)).astype("float32") for size in sizes]
    return generalist, specialists, class_sets


def observed(generalist, specialists, class_sets):
    """Masses by name `(batch, C)`, dustbins `(batch, M)` and who is outside of what `(M, C)`, float64."""
    from scipy.special import softmax

    mass = softmax(generalist.astype("float64"), axis=1)
    outside = np.ones((len(class_sets), mass.shape[1]))
    dustbins = []
    for position, (logits, class_set) in enumerate(zip(specialists, class_sets, strict=True)):
        probabilities = softmax(logits.astype("float64"), axis=1)
        mass[:, class_set] += probabilities[:, :-1]
        dustbins.append(probabilities[:, -1])
        outside[position, class_set] = 0.0
    return mass, np.stack(dustbins, axis=1), outside


def objectives(log_q, mass, dustbins, outside):
    """What the merge maximises, float64 `(batch,)`."""
    from scipy.special import log_softmax

    log_q = log_softmax(np.asarray(log_q, "float64"), axis=1)
    hidden = dustbins * np.log(np.maximum(np.exp(log_q) @ outside.T, 1e-300))
    return (mass * log_q).sum(axis=1) + hidden.sum(axis=1)


def scipy_optimum(start, mass, dustbins, outside):
    from scipy.optimize import minimize
    from scipy.special import log_softmax, logsumexp

    def negative(logits):
        log_q = log_softmax(logits)
        log_outside = logsumexp(np.where(outside > 0, log_q, -np.inf), axis=1)
        shares = outside * np.exp(np.minimum(log_q - log_outside[:, None], 0.0))
        gradient = mass + dustbins @ shares
        return -(mass @ log_q + dustbins @ log_outside), gradient.sum() * np.exp(log_q) - gradient

    options = {"maxiter": 2000, "ftol": 1e-16, "gtol": 1e-11}
    return -minimize(negative, start, jac=True, method="L-BFGS-B", options=options).fun


def parity(num_cases: int) -> dict[str, float]:
    """The greatest distance to SciPy's optimum, nats, by steps and scale of the logits."""
    from keras_distill.specialists import merge

    worst: dict[str, float] = {}
    for scale in (5.0, 50.0):
        for num_specialists in (1, 2, 3, 5, 10):
            for seed in range(num_cases):
                case = random_case(seed, 30, num_specialists, scale)
                problem = observed(*case)
                merged = {steps: np.asarray(merge(*case, steps)) for steps in (10, 12)}
                one = (problem[0][0], problem[1][0], problem[2])
                flat = np.log(0.5 * one[0] / one[0].sum() + 0.5 / 30)
                best = max(scipy_optimum(start.astype("float64"), *one) for start in (flat, merged[12][0]))
                for steps, log_q in merged.items():
                    name = f"{steps} steps, logits up to ±{scale:g}"
                    distance = float(best - objectives(log_q, *problem)[0])
                    worst[name] = max(worst.get(name, 0.0), distance)
    return worst


def gradient_descent(mass, dustbins, outside):
    """A function `(learning rate, steps) -> logits of q`: plain descent on −objective from the generalist's side."""
    import tensorflow as tf

    mass, dustbins, outside = (tf.constant(part, tf.float32) for part in (mass, dustbins, outside))
    total = tf.reduce_sum(mass, axis=1, keepdims=True) + tf.reduce_sum(dustbins, axis=1, keepdims=True)
    start = tf.math.log(mass / tf.reduce_sum(mass, axis=1, keepdims=True))

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32)])
    def descend(learning_rate, num_steps):
        logits = start
        for _ in tf.range(num_steps):
            q = tf.nn.softmax(logits)
            ratio = dustbins / tf.matmul(q, outside, transpose_b=True)
            logits += learning_rate * (mass + q * tf.matmul(ratio, outside) - total * q)
        return logits

    return descend


def speed(num_rounds: int) -> dict:
    """Ours against gradient descent at 100 classes, batch 256."""
    import tensorflow as tf

    from keras_distill.specialists import merge

    case = random_case(0, 100, 10, 5.0, size=10, batch=256)
    problem = observed(*case)
    optimum = objectives(merge(*case, 20), *problem)
    ours = tf.function(lambda generalist, *specialists: merge(generalist, specialists, case[2], 10))
    given = [tf.constant(part) for part in (case[0], *case[1])]
    distance = float((optimum - objectives(ours(*given), *problem)).max())
    descend = gradient_descent(*problem)
    needed = {}
    for learning_rate in LEARNING_RATES:
        for num_steps in np.unique(np.geomspace(1, 20_000, 40).astype(int)):
            reached = np.mean(optimum - objectives(descend(learning_rate, num_steps), *problem))
            if not reached < 1e3:
                break
            if reached < CLOSE_ENOUGH:
                needed[learning_rate] = int(num_steps)
                break
    learning_rate = min(needed, key=needed.__getitem__)
    variants = {
        "merge": lambda: ours(*given).numpy(),
        "gradient descent": lambda: descend(learning_rate, needed[learning_rate]).numpy(),
    }
    seconds = interleave(variants, num_rounds=num_rounds)
    return {
        "merge_ms": 1e3 * statistics.median(seconds["merge"]),
        "gradient_descent_ms": 1e3 * statistics.median(seconds["gradient descent"]),
        "gradient_descent_steps": needed[learning_rate],
        "gradient_descent_learning_rate": learning_rate,
        "merge_distance_nats": distance,
        "gradient_descent_mean_distance_limit_nats": CLOSE_ENOUGH,
        "speed_up": median_ratio(seconds, "gradient descent", "merge"),
    }


def growth(num_rounds: int) -> list[dict]:
    """61 specialists (as many as the paper's), more and more classes and examples."""
    import tensorflow as tf

    from keras_distill.specialists import merge

    rows = []
    for num_classes, batch in ((10, 256), (100, 256), (1000, 256), (15_000, 64), (15_000, 128), (15_000, 256)):
        size = min(300, max(1, num_classes // 20))
        generalist, specialists, class_sets = random_case(0, num_classes, 61, 5.0, size=size, batch=batch)
        covers = np.zeros((num_classes, 61), "float32")
        for position, class_set in enumerate(class_sets):
            covers[class_set, position] = 1.0
        max_active = int(covers.sum(axis=1).max())
        routes = covers[generalist.argmax(axis=1)]

        def run(generalist, routes, *specialists, class_sets=class_sets, max_active=max_active):
            return merge(generalist, specialists, class_sets, 10, routes=routes, max_active=max_active)

        compiled = tf.function(run)
        given = [tf.constant(part) for part in (generalist, routes, *specialists)]
        compiled(*given)
        seconds = interleave({"merge": lambda compiled=compiled, given=given: compiled(*given)}, num_rounds=num_rounds)
        rows.append(
            {
                "num_classes": num_classes,
                "batch": batch,
                "max_active": max_active,
                "mean_active": float(routes.sum(axis=1).mean()),
                "ms": 1e3 * statistics.median(seconds["merge"]),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    return rows


def main() -> int:
    """Prints the result; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=2, help="for each number of specialists and scale")
    arguments = parser.parse_args()
    result = {"machine": machine(), "distance_to_scipy_nats": parity(arguments.cases)}
    result["speed"] = speed(arguments.rounds)
    result["growth"] = growth(arguments.rounds)
    worst = max(value for name, value in result["distance_to_scipy_nats"].items() if name.startswith("12"))
    good = worst < DISTANCE_LIMIT and result["speed"]["speed_up"] >= SPEED_LIMIT
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result["distance_to_scipy_nats"].items():
            print(f"distance to SciPy's optimum, {name}: {value:.1e} nats (limit at 12 steps: {DISTANCE_LIMIT:g})")
        found = result["speed"]
        print(
            f"100 classes, batch 256: {found['merge_ms']:.1f} ms ({found['merge_distance_nats']:.0e} nats away); "
            f"gradient descent {found['gradient_descent_ms']:.0f} ms ({found['gradient_descent_steps']} steps to "
            f"{CLOSE_ENOUGH:g} nats): {found['speed_up']:.0f} × faster (limit: {SPEED_LIMIT:g})"
        )
        for row in result["growth"]:
            print(
                f"{row['num_classes']:6d} classes, batch {row['batch']:3d}, {row['mean_active']:.1f} of 61 active "
                f"(at most {row['max_active']}): {row['ms']:8.1f} ms, peak memory {row['peak_memory_mb']:.0f} MB"
            )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
