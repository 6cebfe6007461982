"""From a generalist to specialists, their exact merge, and back into one net: section 5 of the paper.

Groups the classes that the generalist confuses, trains a specialist for each group, merges them, and compares with a
control: the generalist trained on for as many steps as all specialists together. A generalist that was trained on
mirrored and moved images wants --flip and --shift here too. Everything is kept in --out; run the same command again
and it goes on where it was. Train single specialists elsewhere with --only, in any number of processes, then run once
without it.
"""

import argparse

from keras_distill.cli import engine_options, model_file

SUMMARY = "train specialists for confusable classes and merge them exactly"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--generalist", required=True, metavar="G.keras", help="a trained classifier of all classes")
    add("--data", required=True, help="digits, mnist, spoken_digit, cifar100, tfds:NAME, an .npz or an image folder")
    add("--num-clusters", type=int, required=True, metavar="N", help="how many specialists")
    add("--out", required=True, metavar="DIR", help="a folder for everything that is made")
    add("--cluster-size", type=int, metavar="K", help="classes a specialist has; may overlap (default: a partition)")
    add("--method", default="correlation", help="correlation or covariance (default: %(default)s)")
    add("--cluster-temperature", type=float, default=2.0, help="softens what is clustered (default: %(default)s)")
    add("--num-routes", type=int, default=1, help="best classes that choose specialists (default: %(default)s)")
    add(
        "--generalist-weight", type=float, default=1.0, help="beside a specialist's in the merge (default: %(default)s)"
    )
    add("--trained", default="all", help="what is trained: head, last_block or all (default: %(default)s)")
    add("--steps", type=int, default=300, help="updates of each specialist (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="items a step (default: %(default)s)")
    add("--learning-rate", type=float, default=3e-4, help="Adam's, with cosine decay (default: %(default)s)")
    add("--soft-target-weight", type=float, default=0.5, help="of the generalist's predictions (default: %(default)s)")
    add("--temperature", type=float, default=2.0, help="of those predictions (default: %(default)s)")
    add("--dustbin", default="sum", help="sum of the other classes' units, or one unit (default: %(default)s)")
    add("--flip", action="store_true", help="train on images and their mirror images")
    add("--shift", type=int, default=0, metavar="PIXELS", help="train on images moved by up to so many pixels")
    add("--only", type=int, nargs="+", metavar="I", help="train these specialists alone, then stop")
    add("--distill-back", type=int, default=0, metavar="EPOCHS", help="also distil the merge into one net")
    add(
        "--distill-start", default="fresh", help="that net's weights: fresh, or the generalist's (default: %(default)s)"
    )
    add("--distill-temperature", type=float, default=4.0, help="of that (default: %(default)s)")
    add("--distill-learning-rate", type=float, default=1e-3, help="of that (default: %(default)s)")
    add("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    engine_options.add_engine_arguments(parser)
    model_file.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Clusters, trains, merges, compares."""
    from pathlib import Path

    from keras_distill._checks import check_choice, check_count, check_fraction, check_positive

    check_count("--num-clusters", arguments.num_clusters)
    check_count("--steps", arguments.steps)
    check_count("--batch-size", arguments.batch_size, 2)
    check_count("--num-routes", arguments.num_routes)
    check_count("--distill-back", arguments.distill_back, 0)
    check_count("--shift", arguments.shift, 0)
    check_choice("--distill-start", arguments.distill_start, ("fresh", "generalist"))
    positive = ("learning_rate", "temperature", "cluster_temperature", "generalist_weight")
    for name in (*positive, "distill_temperature", "distill_learning_rate"):
        check_positive(f"--{name.replace('_', '-')}", getattr(arguments, name))
    check_fraction("--soft-target-weight", arguments.soft_target_weight)

    from rich.console import Console

    from keras_distill import data, specialists
    from keras_distill.specialists.specialist import DUSTBINS

    console = Console()
    out = Path(arguments.out)
    generalist = model_file.load(arguments.generalist, arguments)
    dataset = data.load(arguments.data)
    _check_fit(generalist, dataset)
    check_choice("--dustbin", arguments.dustbin, DUSTBINS)
    settings, back_settings = _settings(arguments, dataset)
    _keep(settings, out / "settings.json")
    if arguments.distill_back:
        _keep(back_settings, out / "distillation.json")
    logits = _cached_logits(generalist, dataset.train, out / "generalist_logits.npy")
    clusters = _clusters(arguments, logits, dataset, out)
    console.print(specialists.table(clusters, dataset.class_names))
    _train_by_engine(arguments, generalist, clusters, dataset, logits, out)
    features = _Features(arguments, generalist, dataset.train)
    chosen = range(len(clusters.class_sets)) if arguments.only is None else arguments.only
    for position in chosen:
        if not 0 <= position < len(clusters.class_sets):
            last = len(clusters.class_sets) - 1
            raise ValueError(f"--only must be specialists in [0, {last}]; got {position}.")
        _specialist(arguments, position, generalist, clusters, dataset, logits, features, out)
        console.print(f"specialist {position}: {out / f'specialist-{position:03d}.keras'}")
    if arguments.only is not None:
        return 0

    models = _models(arguments, generalist, clusters, dataset, logits, features, out)
    if arguments.distill_back:
        models |= _distilled_back(arguments, models, dataset, out)
    measured = {name: _predict(model, dataset.test) for name, model in models.items()}
    labels = dataset.test.labels
    rows = {name: _row(predicted, labels) for name, predicted in measured.items()}
    inside = _within_groups(clusters, models["merged"].specialists, measured, dataset.test)
    for name, share in inside.items():
        rows.setdefault(name, {})["within_group"] = share
    coverage = _by_coverage(clusters, measured, labels)
    cost = _cost(out)
    _write_json(out / "results.json", {"models": rows, "by_coverage": coverage, "cost": cost})
    console.print(_models_table(rows, dataset), _coverage_table(coverage))
    minutes, cpu_minutes = cost["seconds"] / 60, cost["cpu_seconds"] / 60
    console.print(f"trained in {minutes:.1f} minutes, {cpu_minutes:.1f} of one processor")
    console.print(f"saved {out / 'ensemble.keras'} and the rest of {out}")
    return 0


def _check_fit(generalist, dataset):
    from keras_distill._checks import error_message

    expected, received = dataset.input_shape, tuple(generalist.input_shape[1:])
    if len(expected) != len(received) or any(b not in (None, a) for a, b in zip(expected, received, strict=True)):
        raise ValueError(
            error_message(f"the generalist's input must have shape {expected}, as {dataset.name} has", received)
        )
    if generalist.output_shape[-1] != dataset.num_classes:
        expected = f"have {dataset.num_classes} classes, as {dataset.name} has"
        raise ValueError(
            error_message(f"the generalist's output must {expected}", f"{generalist.output_shape[-1]} classes")
        )


def _settings(arguments, dataset):
    """What the specialists are the result of, and what the nets distilled back are."""
    from hashlib import sha256
    from pathlib import Path

    from keras_distill.targets.fingerprints import inputs_fingerprint

    free = {"only", "engine", "workers", "out", "run", "command", "traceback", "modules", "trust_code", "generalist"}
    settings = {name: value for name, value in sorted(vars(arguments).items()) if name not in free}
    settings["generalist"] = sha256(Path(arguments.generalist).read_bytes()).hexdigest()
    settings["inputs"] = inputs_fingerprint(dataset.train.inputs)
    back = {name: settings.pop(name) for name in list(settings) if name.startswith("distill")}
    return settings, back


def _keep(settings, path):
    """Writes down what a folder is the result of; refuses to mix two."""
    import json

    if not path.exists():
        _write_json(path, settings)
        return
    older = json.loads(path.read_text())
    differ = [name for name in settings if older.get(name) != settings[name]]
    if differ:
        changed = ", ".join(f"{name} {older.get(name)!r} → {settings[name]!r}" for name in differ)
        raise ValueError(f"{path.parent} must hold a run with these settings; got {changed}. Choose another --out.")


def _write_json(path, content):
    import json

    from keras_distill._files import whole_file

    with whole_file(path) as aside:
        aside.write_text(json.dumps(content, indent=1))


def _cached_logits(generalist, split, path):
    """The generalist's logits on a split, computed once; float32 `(num_items, num_classes)`."""
    import numpy as np

    from keras_distill._files import whole_file

    if not path.exists():
        logits = _predict(generalist, split)
        with whole_file(path) as aside:
            np.save(aside, logits)
    return np.load(path)


def _clusters(arguments, logits, dataset, out):
    import numpy as np

    from keras_distill import specialists
    from keras_distill._files import whole_file

    clusters = specialists.cluster_classes(
        (logits[start : start + 4096] for start in range(0, len(logits), 4096)),
        arguments.num_clusters,
        size=arguments.cluster_size,
        temperature=arguments.cluster_temperature,
        method=arguments.method,
        seed=arguments.seed,
    )
    path = out / "clusters.json"
    if path.exists():
        # What specialists were trained for stays, also where another machine's k-means would differ.
        import json

        kept = json.loads(path.read_text())
        return specialists.Clusters(kept["class_sets"], kept["uncovered"], clusters.similarity)
    with whole_file(out / "confusable.png") as aside:
        specialists.heat_map(clusters, dataset.class_names, aside)
    names = [[dataset.class_names[label] for label in np.atleast_1d(part)] for part in clusters.class_sets]
    _write_json(path, {"class_sets": clusters.class_sets, "uncovered": clusters.uncovered, "names": names})
    return clusters


def _augmentation(arguments):
    """What --flip and --shift ask for; `None` without them."""
    from keras_distill.targets import Augmentation, Flip, Shift

    steps = ([Flip()] if arguments.flip else []) + ([Shift(arguments.shift)] if arguments.shift else [])
    return Augmentation(*steps, seed=arguments.seed) if steps else None


def _recipe(arguments, seed):
    """The options that specialists, the control and the nets distilled back share, for a training in this process."""
    import tensorflow as tf

    augmentation = _augmentation(arguments)
    return {
        "trained": arguments.trained,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "soft_target_weight": arguments.soft_target_weight,
        "temperature": arguments.temperature,
        # As a graph it takes half the time that it takes op by op, the same to the last bit.
        "augmentation": None if augmentation is None else tf.function(augmentation, autograph=False),
        "seed": seed,
    }


def _train_by_engine(arguments, generalist, clusters, dataset, logits, out):
    """All specialists by the workers that --engine and --workers ask for; who follows finds them made."""
    from keras_distill import specialists

    engine = engine_options.engine_from(arguments)
    if engine is None:
        return
    if arguments.only is not None:
        raise ValueError("--only must be left out with an engine, which trains all of them; got both.")
    # A graph cannot travel to a worker.
    recipe = _recipe(arguments, arguments.seed) | {"augmentation": _augmentation(arguments)}
    specialists.train_all(
        generalist,
        clusters.class_sets,
        dataset.train,
        out,
        engine=engine,
        num_steps=arguments.steps,
        dustbin=arguments.dustbin,
        generalist_logits=logits,
        **recipe,
    )


class _Features:
    """What the frozen layers make of all examples, once a process, when the first training asks."""

    def __init__(self, arguments, generalist, split):
        self.arguments, self.generalist, self.split, self.found = arguments, generalist, split, None

    def __call__(self):
        from keras_distill.specialists.frozen import frozen_features

        if self.arguments.trained == "all" or _augmentation(self.arguments) is not None:
            return None
        if self.found is None:
            self.found = frozen_features(self.generalist, self.split.inputs, self.arguments.trained)
        return self.found


def _specialist(arguments, position, generalist, clusters, dataset, logits, features, out):
    from keras_distill import specialists

    name = f"specialist-{position:03d}"
    return _made_once(
        out / f"{name}.keras",
        lambda: specialists.train(
            generalist,
            clusters.class_sets[position],
            dataset.train,
            num_steps=arguments.steps,
            dustbin=arguments.dustbin,
            generalist_logits=logits,
            features=features(),
            backup_dir=out / f".{name}",
            **_recipe(arguments, arguments.seed + position),
        ),
    )


def _made_once(path, make):
    """The model at `path`; made and saved, whole, where there is none, with what it cost beside it."""
    import time

    from keras_distill._files import whole_file
    from keras_distill.models.saving import load_model

    if not path.exists():
        start, cpu_start = time.perf_counter(), time.process_time()
        model = make()
        cost = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        _write_json(path.parent / "cost" / f"{path.stem}.json", cost)
        with whole_file(path) as aside:
            model.save(aside)
    return load_model(path, compile=False)


def _cost(out):
    """What the models cost, and all of them together; of one whose training was killed, the last part."""
    import json

    models = {path.stem: json.loads(path.read_text()) for path in sorted((out / "cost").glob("*.json"))}
    return {
        "models": models,
        **{name: sum(part[name] for part in models.values()) for name in ("seconds", "cpu_seconds")},
    }


def _models(arguments, generalist, clusters, dataset, logits, features, out):
    from keras_distill import specialists

    experts = [
        _specialist(arguments, position, generalist, clusters, dataset, logits, features, out)
        for position in range(len(clusters.class_sets))
    ]
    num_steps = arguments.steps * len(experts)
    control = _made_once(
        out / "control.keras",
        lambda: specialists.train_control(
            generalist,
            dataset.train,
            num_steps=num_steps,
            teacher_logits=logits,
            features=features(),
            backup_dir=out / ".control",
            **_recipe(arguments, arguments.seed),
        ),
    )
    merged = _made_once(
        out / "ensemble.keras",
        lambda: specialists.SpecialistEnsemble(
            generalist,
            experts,
            clusters.class_sets,
            num_routes=arguments.num_routes,
            generalist_weight=arguments.generalist_weight,
        ),
    )
    return {"generalist": generalist, "control": control, "merged": merged}


def _distilled_back(arguments, models, dataset, out):
    """Nets of the generalist's architecture, taught by each of the three, all with the same batches."""
    import keras

    from keras_distill import specialists

    found = {}
    num_steps = arguments.distill_back * -(-len(dataset.train) // arguments.batch_size)
    changes = {"trained": "all", "learning_rate": arguments.distill_learning_rate}
    changes |= {"temperature": arguments.distill_temperature, "soft_target_weight": 0.5}
    for name, teacher in (
        ("self-distilled", "generalist"),
        ("control, distilled", "control"),
        ("merged, distilled", "merged"),
    ):
        keras.utils.set_random_seed(arguments.seed + 1000)
        start = models["generalist"]
        if arguments.distill_start == "fresh":
            start = keras.models.clone_model(start)

        def make(start=start, teacher=teacher):
            return specialists.train_control(
                start,
                dataset.train,
                teacher=models[teacher],
                num_steps=num_steps,
                backup_dir=out / f".{teacher}-distilled",
                **_recipe(arguments, arguments.seed) | changes,
            )

        found[name] = _made_once(out / f"distilled-from-{teacher}.keras", make)
    return found


def _predict(model, split):
    from keras_distill.models.forward_pass import logits_model

    return logits_model(model).predict(split.inputs, batch_size=512, verbose=0)


def _row(logits, labels):
    from keras_distill.report import metrics

    errors = round(metrics.error_rate(logits, labels) * len(labels))
    low, high = metrics.wilson_interval(errors, len(labels))
    likelihood = metrics.negative_log_likelihood(logits, labels)
    return {"errors": errors, "low": low, "high": high, "nll": likelihood}


def _by_coverage(clusters, measured, labels):
    """The paper's table 4: what changes, by how many specialists cover the true class."""
    import numpy as np

    coverage = clusters.coverage
    rows = []
    for count in sorted(set(coverage.tolist())):
        here = coverage[labels] == count
        row = {"specialists": count, "classes": int((coverage == count).sum()), "items": int(here.sum())}
        for name in ("generalist", "control", "merged"):
            row[name] = int((np.argmax(measured[name][here], axis=-1) == labels[here]).sum())
        rows.append(row)
    return rows


def _within_groups(clusters, experts, measured, split):
    """Accuracy on the items of a group among that group's classes alone, mean over the items of all groups.

    The paper's "conditional" accuracy, but within one group: what specialists gain here and the merged model does not
    show was lost in choosing the group.
    """
    import numpy as np

    right, num_items = dict.fromkeys(["specialists", *measured], 0), 0
    for class_set, expert in zip(clusters.class_sets, experts, strict=True):
        here = np.isin(split.labels, class_set)
        if not here.any():
            continue
        labels = split.labels[here]
        num_items += len(labels)
        own = _predict(expert, split.take(np.flatnonzero(here)))[:, :-1]
        for name, logits in [("specialists", own)] + [
            (name, logits[here][:, class_set]) for name, logits in measured.items()
        ]:
            right[name] += int((np.asarray(class_set)[np.argmax(logits, axis=-1)] == labels).sum())
    return {name: count / max(num_items, 1) for name, count in right.items()}


def _models_table(rows, dataset):
    from rich.table import Table

    num_items = len(dataset.test)
    table = Table(title=f"{dataset.name}, {num_items} test items")
    for column in ("model", "errors", "error rate", "95 % interval", "NLL (nats)", "right within its group"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in rows.items():
        within = f"{100 * row['within_group']:.2f} %"
        if "errors" not in row:
            table.add_row(name, "–", "–", "–", "–", within)
            continue
        interval = f"{100 * row['low']:.2f}–{100 * row['high']:.2f} %"
        rate = f"{100 * row['errors'] / num_items:.2f} %"
        table.add_row(name, str(row["errors"]), rate, interval, f"{row['nll']:.4f}", within)
    return table


def _coverage_table(rows):
    from rich.table import Table

    table = Table(title="by how many specialists cover the true class: items classified rightly")
    columns = ("specialists", "classes", "test items", "generalist", "control", "merged", "change", "relative")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        change = row["merged"] - row["generalist"]
        relative = f"{100 * change / row['generalist']:+.1f} %" if row["generalist"] else "–"
        counts = [str(row[name]) for name in ("specialists", "classes", "items", "generalist", "control", "merged")]
        table.add_row(*counts, f"{change:+d}", relative)
    return table
