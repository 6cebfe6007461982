"""`tune`: temperature, weight of the labels and learning rate, chosen on validation data by successive halving.

All trials read one store. Studies lie side by side in one SQLite file: labels alone, distilled, and labels again at the
rate that suited soft targets. They are halved apart, because soft targets want more steps than labels do: a distilled
student that ends ahead is behind for the first half of its training, and would be given up.
"""

import inspect
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_distill._checks import check_count, check_fraction, check_number, check_positive, error_message
from keras_distill._files import whole_file
from keras_distill._types import ArrayLike, TensorTree
from keras_distill.distillation import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.losses.per_example import PerExampleLoss, serialized
from keras_distill.search.training import DIVERGED, Recipe, Training, optuna_quiet, start_again
from keras_distill.targets import SoftTargetStore
from keras_distill.targets.fingerprints import every_item_fingerprint, fingerprint
from keras_distill.targets.replaying import replay_of

if TYPE_CHECKING:
    import optuna

LABELS, DISTILLED, AGAIN = "labels", "distilled", "labels-again"
# How many candidates each study begins with, the most that the steps allow: at an eighth, a quarter and half of a
# training the better half goes on. The first costs 1.5 + 2.5 trainings.
_SIZES = ((4, 8), (4, 4), (2, 4), (2, 2), (1, 2), (1, 1))
NUM_CANDIDATES = sum(_SIZES[0])
# Of the learning rate, on labels alone, beside one more that follows from their first scores; what they find is where
# distilled candidates look.
_FACTORS = (1.0, 3.0, 10.0)
# Distilled candidates beside the given one, as (temperature, weight of the labels, factor of the labels' best rate):
# soft targets bear a higher rate, since they are learnt by heart later.
_FIRST = ((4.0, 0.1, 1.0), (2.0, 0.5, 1.0), (4.0, 0.5, 3.0), (4.0, 0.1, 3.0))
_SCORES = "scores"
# Of a store's manifest, what a student that learns from it depends on, beside the teacher and the data.
_OF_ROWS = ("kind", "dtype", "top_k", "num_views", "augmentation")
# A student read from its file scores as it did, but for the arithmetic of another machine.
_SAME_SCORE = 1e-2


@dataclass(frozen=True)
class Tuned:
    """What `tune` chose.

    Attributes:
        candidate: the best on validation data, labels alone among them.
        score: its negative log-likelihood on validation data at its best temperature, in nats.
        student: trained with it.
        labels_candidate: the best of those on labels alone.
        labels_score: its score.
        labels_student: trained with it; `student` itself where labels alone were best.
        distilled_candidate: the best of those that were taught.
        distilled_student: trained with it; `student` itself where it was best.
        history: of `student` by epoch, as `fit` reports it; what is validated, every `validated_every(epochs)`.
        labels_history: of `labels_student`.
        num_steps: of all trials together.
        steps_of_one: of one whole training.
        trials: what was tried, one dict each: `study`, `state`, `score`, `steps` and the candidate's fields.
    """

    candidate: Recipe
    score: float
    student: keras.Model
    labels_candidate: Recipe
    labels_score: float
    labels_student: keras.Model
    distilled_candidate: Recipe
    distilled_student: keras.Model
    history: dict[str, list[float]]
    labels_history: dict[str, list[float]]
    num_steps: int
    steps_of_one: int
    trials: list[dict[str, Any]]

    @property
    def is_rate_too_low(self) -> bool:
        """Whether labels alone were best at the greatest learning rate that was tried: more may be better still."""
        rates = [trial["learning_rate"] for trial in self.trials if trial["study"] == LABELS]
        return len(rates) > 1 and self.labels_candidate.learning_rate == max(rates)


def tune(
    make_student: Callable[[], keras.Model],
    train: tuple[TensorTree, ArrayLike],
    validation: tuple[TensorTree, ArrayLike],
    store: SoftTargetStore | str | os.PathLike,
    out: str | os.PathLike,
    *,
    epochs: int,
    batch_size: int = 128,
    temperature: float = 4.0,
    student_loss_weight: float = 0.1,
    learning_rate: float = 1e-3,
    max_cost: float = 4.0,
    seed: int = 0,
    distillation_losses: Callable[[float], Any] = SoftTargets,
    distillation_loss_weights: Any = None,
    teacher: keras.Model | None = None,
    on_trial: Callable[[dict[str, Any]], None] | None = None,
) -> Tuned:
    """Chooses temperature, weight of the labels and learning rate on validation data; gives the student trained so.

    Labels alone are tried first, at four learning rates: the given one, 3 and 10 times as much, and one beyond the best
    of these, or next to it, by how they began. Around the best of the four are eight distilled candidates, the given
    settings among them and half of them drawn by Optuna's sampler. Every candidate begins a whole training; at an
    eighth, a quarter and half of it the better half of each study goes on. Optuna's own pruner cannot do that: it
    pauses no trial, so that the first one of a study goes to its end whatever it is. Where a distilled candidate is the
    best, at a greater rate than the best on labels alone, labels are trained once more at that rate: what is found of
    distilling is then not a matter of rates.

    What is compared is the negative log-likelihood of the validation labels at the temperature that suits each student
    best: on few examples it tells two students apart where their errors do not.

    Killed and called again with the same arguments it ends in the same students: what was given up stays so, and what
    was in training begins again.

    Args:
        make_student: makes the student with the weights to begin from, compiled or not; the same at each call.
        train: inputs and labels, `(num_items, …)` and whole numbers `(num_items,)` or one row a class: what the store
            was labelled with. −1 is no label: labels alone then train on the others, as many steps.
        validation: inputs and labels, to choose on.
        store: the teacher's soft targets for `train`, or the store's folder.
        out: a folder for the study (`study.sqlite3`) and the best students so far.
        epochs: of a whole training.
        batch_size: items a step.
        temperature: of the first distilled candidate; others have 1 to 8.
        student_loss_weight: of the first distilled candidate; others have 0 to 0.9.
        learning_rate: in the middle of what is tried.
        max_cost: steps of all trials together, in whole trainings, but for that one more; 2 at least. Less than 4 tries
            fewer candidates.
        seed: of the order of the examples, of dropout and of what is drawn.
        distillation_losses: from a temperature to what `Distiller` takes by that name: a loss's own class, or
            `lambda temperature: [SoftTargets(temperature), Hint("block2")]`.
        distillation_loss_weights: what `Distiller` takes by that name.
        teacher: the model to run beside the student, where a loss reads its layers; `None` trains from the store.
        on_trial: called with each trial that has ended, as `Tuned.trials` has it.

    Raises:
        ValueError: a setting out of its range; labels that are no classes of the store's; a store that was merged or
            sampled at one temperature, or whose views blend items; a folder that holds the study of another student
            (its weights to begin from too), other settings (so many candidates as `max_cost` allows among them), rows,
            labels or data.
        ImportError: Optuna is not installed.

    Example:
        >>> import tempfile
        >>> from keras_distill.targets import label
        >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
        >>> y = (x[:, 0] > x[:, 1]).astype("int32")
        >>> folder = tempfile.mkdtemp()
        >>> store = label(lambda x: 3 * x, x, folder + "/targets", teacher_fingerprint="three times")
        >>> make = lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> tuned = tune(make, (x, y), (x, y), store, folder + "/study", epochs=3, batch_size=32)
        >>> tuned.num_steps <= 4 * 3 * 2
        True

    Reference:
        Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
        arXiv:1502.07943, section 3.
    """
    epochs, batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
    seed = check_count("seed", seed, 0)
    _check_losses(distillation_losses)
    first = Recipe(
        check_positive("temperature", temperature),
        check_fraction("student_loss_weight", student_loss_weight),
        check_positive("learning_rate", learning_rate),
    )
    if check_number("max_cost", max_cost) < 2.0:
        remedy = "One training on labels alone and one with the given settings are whole in any case."
        raise ValueError(error_message("max_cost must be >= 2 trainings", max_cost, remedy))
    store = store if isinstance(store, SoftTargetStore) else SoftTargetStore.open(store)
    if store.manifest.only_temperature is not None:
        remedy = (
            "Label into another store with all logits or the largest, or distil at that temperature without tuning."
        )
        received = f"one that serves {store.manifest.only_temperature:g} alone"
        raise ValueError(error_message("the store must serve every temperature to be tuned with", received, remedy))
    train = train[0], _classes("training", train[1], store, -1)
    validation = validation[0], _classes("validation", validation[1], store, 0)
    if not (train[1] >= 0).any():
        remedy = "Labels alone are tried too; without them distil with settings of your choice."
        raise ValueError(error_message("some of the training examples must have a label", "−1 for all", remedy))
    store.check_softmax()
    replay_of(store, "Its labels would be shares of classes: label the items as they are, or distil without tuning.")
    training = Training(
        train, validation, store, epochs, batch_size, seed, distillation_losses, distillation_loss_weights, teacher
    )
    folder = Path(out)
    num_labels, num_distilled = next(sizes for sizes in _SIZES if training.cost(*sizes) <= max_cost)
    with optuna_quiet("tune"):
        studies = _open_studies(folder, make_student, training, first, (num_labels, num_distilled))
        on_labels = _on_labels(first)[:num_labels]
        last = _next_on_labels if num_labels > len(on_labels) else None
        found = {LABELS: _halved(studies[LABELS], on_labels, make_student, training, folder, on_trial, last)}
        candidates = _distilled(first, found[LABELS][0].learning_rate, num_distilled, seed)
        found[DISTILLED] = _halved(studies[DISTILLED], candidates, make_student, training, folder, on_trial)
        best, score = found[DISTILLED]
        if score < found[LABELS][1] and best.learning_rate > found[LABELS][0].learning_rate:
            # Or what is found of distilling might be a matter of rates.
            again = replace(found[LABELS][0], learning_rate=best.learning_rate)
            found[AGAIN] = _halved(studies[AGAIN], [again], make_student, training, folder, on_trial)
        trials = [trial for name in found for trial in _described(studies[name], training)]
    chosen = min(found, key=lambda name: found[name][1])
    best_on_labels = min(set(found) - {DISTILLED}, key=lambda name: found[name][1])
    students = {name: _trained_student(make_student, training, folder, name, found[name][1]) for name in found}
    histories = {name: json.loads(_history_path(folder, name).read_text()) for name in found}
    num_steps = sum(trial["steps"] for trial in trials)
    (best, score), (labels_best, labels_score) = found[chosen], found[best_on_labels]
    return Tuned(
        best,
        score,
        students[chosen],
        labels_best,
        labels_score,
        students[best_on_labels],
        found[DISTILLED][0],
        students[DISTILLED],
        histories[chosen],
        histories[best_on_labels],
        num_steps,
        training.num_steps,
        trials,
    )


def _open_studies(
    folder: Path,
    make_student: Callable[[], keras.Model],
    training: Training,
    first: Recipe,
    sizes: tuple[int, int],
) -> "dict[str, optuna.Study]":
    """The studies of a folder, new ones or those of the same settings; what was running is to be begun again."""
    import optuna

    folder.mkdir(parents=True, exist_ok=True)
    manifest = training.store.manifest
    keras.utils.set_random_seed(training.seed)
    settings = {
        "student": fingerprint(make_student()),
        "learning_rate": first.learning_rate,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "seed": training.seed,
        "teacher": manifest.teacher_fingerprint,
        "data": manifest.dataset_fingerprint,
        "kind of rows": {name: getattr(manifest, name) for name in _OF_ROWS},
        "labels or validation data": every_item_fingerprint(
            [np.asarray(training.train[1]), *keras.tree.flatten(training.validation[0]), training.validation[1]]
        ),
        # What is kept of a study is the best of so many: fewer, or more, are another's.
        "max_cost": list(sizes),
    }
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder.resolve()}/study.sqlite3")
    studies = {}
    for name in (LABELS, DISTILLED, AGAIN):
        study = optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
        # Labels alone are the same whatever is tried beside them.
        own = {} if name != DISTILLED else asdict(first) | {"losses": _described_losses(training, first)}
        start_again(study, settings | own, str(folder))
        studies[name] = study
    return studies


def _classes(which: str, labels: ArrayLike, store: SoftTargetStore, least: int) -> np.ndarray:
    """Labels in any layout that Keras takes as classes, int64 `(num_items,)`; −1 is none, where it is allowed.

    Raises:
        ValueError: they are no numbers, or no classes of the teacher's.
    """
    labels, num_classes = np.asarray(labels), store.manifest.num_classes
    if labels.dtype.kind not in "biuf":
        remedy = "Number them: numpy.unique(labels, return_inverse=True)[1]."
        raise ValueError(error_message(f"the {which} labels must be whole numbers", labels.dtype, remedy))
    if labels.ndim == 2:
        labels = labels.argmax(axis=-1) if labels.shape[-1] == num_classes > 1 else labels.reshape(-1)
    outside = labels[(labels < least) | (labels >= num_classes)]
    if outside.size:
        remedy = "Each must be a class that the teacher knows."
        if num_classes == 1:
            remedy = "One sigmoid unit of logit z is the two logits 0 and z: add a layer that says so."
        expectation = f"the {which} labels must be in [{least}, {num_classes})"
        raise ValueError(error_message(expectation, f"{outside.flat[0]} ({outside.size} such)", remedy))
    return labels.astype(np.int64)


def _check_losses(make: Callable[[float], Any]) -> None:
    """Raises `TypeError` for what is no function of a temperature."""
    is_class = isinstance(make, type)
    first = next(iter(inspect.signature(make).parameters), "") if is_class else ""
    is_loss = isinstance(make, (keras.losses.Loss, PerExampleLoss))
    if callable(make) and not is_loss and (not is_class or first == "temperature"):
        return
    name = make.__name__ if is_class else type(make).__name__
    remedy = "Pass a class whose first argument is the temperature, such as kd.losses.DIST, or a lambda temperature: …"
    received = f"{name}, whose first argument is {first}" if is_class else f"a {name}"
    raise TypeError(error_message("distillation_losses must make losses of a temperature", received, remedy))


def _described_losses(training: Training, first: Recipe) -> str:
    """What tells one objective from another: losses, by their settings at the first temperature, weights, a teacher."""
    losses = keras.tree.map_structure(serialized, training.distillation_losses(first.temperature))
    weights = keras.tree.map_structure(serialized, training.distillation_loss_weights)
    teacher = None if training.teacher is None else fingerprint(training.teacher)
    return json.dumps([losses, weights, teacher], sort_keys=True, default=repr)


def _on_labels(first: Recipe) -> list[Recipe]:
    return [Recipe(first.temperature, 1.0, factor * first.learning_rate) for factor in _FACTORS]


def _next_on_labels(candidates: Sequence[Recipe], scores: Sequence[float]) -> Recipe:
    """One more rate, by the scores of some: beyond the best where it is the least or the greatest, else next to it.

    Example:
        >>> recipes = [Recipe(1.0, 1.0, rate) for rate in (1.0, 4.0, 16.0)]
        >>> [_next_on_labels(recipes, scores).learning_rate for scores in ([3, 2, 1], [1, 2, 3], [3, 1, 2])]
        [48.0, 0.3, 8.0]
    """
    order = sorted(range(len(candidates)), key=lambda index: candidates[index].learning_rate)
    place = order.index(int(np.argmin(scores)))
    rate = candidates[order[place]].learning_rate
    if place == len(order) - 1:
        return replace(candidates[0], learning_rate=3.0 * rate)
    if place == 0:
        return replace(candidates[0], learning_rate=0.3 * rate)
    neighbour = min(order[place - 1], order[place + 1], key=lambda index: scores[index])
    return replace(candidates[0], learning_rate=math.sqrt(rate * candidates[neighbour].learning_rate))


def _distilled(first: Recipe, best_rate: float, num_candidates: int, seed: int) -> list[Recipe]:
    """The given settings at the labels' best rate, some that are often good, and what Optuna draws."""
    import optuna

    candidates = [Recipe(first.temperature, first.student_loss_weight, best_rate)]
    for temperature, weight, factor in _FIRST:
        candidate = Recipe(temperature, weight, factor * best_rate)
        if candidate not in candidates:
            candidates.append(candidate)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        "temperature": optuna.distributions.FloatDistribution(1.0, 8.0, log=True),
        "student_loss_weight": optuna.distributions.FloatDistribution(0.0, 0.9),
        "learning_rate": optuna.distributions.FloatDistribution(best_rate / 2, 4 * best_rate, log=True),
    }
    # In a study of its own, in memory: one that was killed draws the same again.
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    while len(candidates) < num_candidates:
        candidates.append(Recipe(**drawn.ask(space).params))
    return candidates[:num_candidates]


def _halved(
    study: "optuna.Study",
    candidates: Sequence[Recipe],
    make_student: Callable[[], keras.Model],
    training: Training,
    folder: Path,
    on_trial: Callable[[dict[str, Any]], None] | None,
    last: Callable[[Sequence[Recipe], Sequence[float]], Recipe] | None = None,
) -> tuple[Recipe, float]:
    """The best of some candidates by successive halving, and its score; its student is saved.

    Trial i of the study is candidate i. What each scored at each rung the study keeps as it comes. With `last` there is
    one candidate more, which follows from the others' scores at the first rung.
    """
    from optuna.trial import TrialState

    candidates = list(candidates)
    num_candidates = len(candidates) + (last is not None)
    _enter(study, candidates)
    scores: dict[str, dict[str, float]] = study.user_attrs.get(_SCORES, {str(i): {} for i in range(num_candidates)})
    running: dict[int, tuple[Distiller, int]] = {}
    histories: dict[int, dict[str, list[float]]] = {}

    def end(index: int, state: TrialState, score: float | None = None) -> None:
        running.pop(index, None)
        if study.trials[index].state.is_finished():
            return
        study.tell(index, score, state=state)
        if on_trial is not None:
            on_trial(_described(study, training)[index])

    left = list(range(num_candidates))
    rungs = training.rungs(num_candidates)
    before = ""
    for rung, num_left in rungs:
        if before:
            left.sort(key=lambda index: scores[str(index)][before])
        before = str(rung)
        for index in left[num_left:]:
            end(index, TrialState.PRUNED)
        left = left[:num_left]
        for index in left:
            if last is not None and index == len(candidates):
                candidates.append(last(candidates, [scores[str(i)][str(rung)] for i in range(index)]))
                _enter(study, candidates)
            if str(rung) in scores[str(index)]:
                continue
            if index not in running:
                keras.utils.set_random_seed(training.seed)
                running[index], histories[index] = (training.begin(make_student(), candidates[index]), 0), {}
            distiller, start = running[index]
            # One that was killed goes through the same parts again.
            for stop in sorted({stop for stop, _ in rungs if start < stop <= rung}):
                part = training.go_on(distiller, start, stop)
                for metric, values in part.history.items():
                    histories[index].setdefault(metric, []).extend(values)
                start = stop
            running[index] = distiller, start
            scores[str(index)][str(rung)] = training.score(training.logits_after(distiller.student, part, rung))
            ended = [known[str(rung)] for i, known in scores.items() if i != str(index) and str(rung) in known]
            # Of one epoch, every rung is the end of the training, and the best so far is kept.
            if rung == training.epochs and all(scores[str(index)][str(rung)] < score for score in ended):
                # Before the study knows of it: killed in between, it is trained and written again.
                with whole_file(_history_path(folder, study.study_name)) as aside:
                    aside.write_text(json.dumps(histories[index]))
                with whole_file(_student_path(folder, study.study_name)) as aside:
                    distiller.student.save(aside)
            study.set_user_attr(_SCORES, scores)
    (best,) = left
    score = scores[str(best)][str(training.epochs)]
    # Labels at a rate that suits soft targets may diverge: then they are not the best on labels.
    if score == DIVERGED and study.study_name != AGAIN:
        remedy = "Begin with a smaller one, in a new folder."
        received = f"{candidates[best].learning_rate:g}, at which the logits are NaN or infinite"
        raise ValueError(error_message("the learning rate must be one that trains", received, remedy))
    end(best, TrialState.COMPLETE, score)
    return candidates[best], score


def _enter(study: "optuna.Study", candidates: Sequence[Recipe]) -> None:
    """Begins a trial for each candidate that has none."""
    import optuna

    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "temperature": optuna.distributions.FloatDistribution(1e-3, 1e3),
        "student_loss_weight": optuna.distributions.FloatDistribution(0.0, 1.0),
        "learning_rate": optuna.distributions.FloatDistribution(1e-12, 1e6),
    }
    states = [trial.state for trial in study.trials]
    num_waiting = states.count(optuna.trial.TrialState.WAITING)
    for candidate in candidates[len(states) :]:
        study.enqueue_trial(asdict(candidate))
        num_waiting += 1
    for _ in range(num_waiting):
        study.ask(distributions)


def _described(study: "optuna.Study", training: Training) -> list[dict[str, Any]]:
    """The trials of a study as `Tuned.trials` has them."""
    scores = study.user_attrs[_SCORES]
    described = []
    for trial in study.trials:
        own = scores[str(trial.number)]
        rungs = [int(rung) for rung in own]
        described.append(
            {
                "study": DISTILLED if study.study_name == DISTILLED else LABELS,
                "state": trial.state.name.lower(),
                "score": own[str(max(rungs))],
                "steps": max(rungs) * training.steps_per_epoch,
                **trial.params,
            }
        )
    return described


def _trained_student(
    make_student: Callable[[], keras.Model], training: Training, folder: Path, name: str, score: float
) -> keras.Model:
    """A student with the weights of a file: its class and layers are the caller's, and need not be registered.

    Raises:
        ValueError: the file is another's: it does not score as the study says.
    """
    student, path = make_student(), _student_path(folder, name)
    student.load_weights(path)
    found = training.score(training.validation_logits(student))
    if abs(found - score) > _SAME_SCORE * (1.0 + score):
        remedy = "Remove the folder to begin anew."
        expectation = f"{path} must be the student that the study knows, of {score:.4f} nats on the validation data"
        raise ValueError(error_message(expectation, f"{found:.4f}", remedy))
    return student


def _student_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.keras"


def _history_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.history.json"
