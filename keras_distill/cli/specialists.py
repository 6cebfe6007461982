"""From a generalist to specialists, their exact merge, and back into one net: section 5 of the paper.

Groups the classes that the generalist confuses, trains a specialist for each group, merges them, and compares with a
control: the generalist trained on for as many steps as all specialists together. A generalist that was trained on
mirrored and moved images wants --flip and --shift here too. Everything is kept in --out; run the same command again
and it goes on where it was. Train single specialists elsewhere with --only, in any number of processes, then run once
without it.
"""

import argparse

from keras_distill.cli import data_options, engine_options, model_file

SUMMARY = "train specialists for confusable classes and merge them exactly"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--generalist", required=True, metavar="G.keras", help="a trained classifier of all classes")
    data_options.add_data_arguments(parser)
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

    from keras_distill import specialists
    from keras_distill.cli import specialists_report
    from keras_distill.cli.evaluation import check_model_fits_dataset
    from keras_distill.cli.settings import settings_of
    from keras_distill.cli.specialists_run import Clustering, DistillingBack, SpecialistsRun, Training, write_json
    from keras_distill.specialists.specialist import DUSTBINS

    check_choice("--dustbin", arguments.dustbin, DUSTBINS)
    generalist, dataset = model_file.load(arguments.generalist, arguments), data_options.load(arguments)
    check_model_fits_dataset(generalist, dataset, "generalist")
    out = Path(arguments.out)
    made = SpecialistsRun(
        settings_of(Clustering, arguments),
        settings_of(Training, arguments),
        settings_of(DistillingBack, arguments),
        generalist,
        Path(arguments.generalist),
        dataset,
        arguments.data,
        out,
    )
    made.keep_settings()
    console = Console()
    console.print(specialists.table(made.clusters, dataset.class_names))
    engine = engine_options.engine_from(arguments)
    if engine is not None and arguments.only is not None:
        raise ValueError("--only must be left out with an engine, which trains all of them; got both.")
    if engine is not None:
        made.train_by(engine)
    last = len(made.clusters.class_sets) - 1
    for position in range(last + 1) if arguments.only is None else arguments.only:
        if not 0 <= position <= last:
            raise ValueError(f"--only must name specialists in [0, {last}]; got {position}.")
        made.specialist(position)
        console.print(f"specialist {position}: {out / f'specialist-{position:03d}.keras'}")
    if arguments.only is not None:
        return 0

    models = made.models()
    if arguments.distill_back:
        models |= made.distilled_back(models)
    results = specialists_report.measure(models, made.clusters, dataset.test) | {"cost": made.cost()}
    write_json(out / "results.json", results)
    console.print(*specialists_report.tables(results, dataset))
    minutes, cpu_minutes = results["cost"]["seconds"] / 60, results["cost"]["cpu_seconds"] / 60
    console.print(f"trained in {minutes:.1f} minutes, {cpu_minutes:.1f} of one processor")
    console.print(f"saved {out / 'ensemble.keras'} and the rest of {out}")
    return 0
