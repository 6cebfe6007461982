"""Out-of-fold targets: whoever answers for an item has not been trained on it.

A teacher that knows its training set by heart says of those items little more than their labels do. So the items are
dealt into folds (`folds.py`), and of each fold a teacher says what it thinks that was trained on all the others. Each
fold is labelled into a store of its own, aside; when all are there, their rows are put in the order of the items.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._files import whole_folder
from keras_distill._progress import progress_bar
from keras_distill._types import ArrayLike, Data, Teacher, TensorTree
from keras_distill.models.strings import holds_strings
from keras_distill.targets.arrays import as_arrays
from keras_distill.targets.calibration import calibration_examples
from keras_distill.targets.fingerprints import fingerprint, inputs_fingerprint, item_marks
from keras_distill.targets.folds import assign_folds
from keras_distill.targets.manifest import Manifest, StoreError, rows_per_shard_for
from keras_distill.targets.replaying import recipe
from keras_distill.targets.shards import (
    FOLDS,
    begun,
    check_room,
    create,
    finish,
    missing_shards,
    publish_first,
    something_else,
    write_shard,
)
from keras_distill.targets.source import ArraySource, gives_batches, is_stream
from keras_distill.targets.store import SoftTargetStore

if TYPE_CHECKING:
    from keras_distill.targets.augmentation import Augmentation

# From the inputs and labels of all folds but one, and that one's number, to a teacher.
MakeTeacher = Callable[[TensorTree, TensorTree, int], Teacher]
# Options of `label` in which runs of one store may differ, and those that are told otherwise.
_NO_SETTING = {"process", "num_processes", "progress", "rows_per_shard", "mask", "engine", "runtime"}
_NO_SETTING |= {"augmentation", "calibrate"}
# Of a manifest, what every fold's store must have in common.
_SHARED = ("kind", "num_classes", "example_shape", "dtype", "top_k", "sample", "member_weights", "temperature")


def label_out_of_fold(
    make_teacher: MakeTeacher | None,
    dataset: Data,
    path: str | os.PathLike,
    folds: int,
    *,
    groups: ArrayLike | None,
    seed: int,
    options: Mapping[str, Any],
) -> SoftTargetStore | None:
    """What `label` does with `folds`; the other arguments of `label` are `options`.

    Returns:
        The store, or `None` while other processes are still at work on their folds.
    """
    if not callable(make_teacher):
        remedy = "Pass make_teacher=…, a function (inputs, labels, fold) that trains a teacher and returns it."
        received = "none" if make_teacher is None else f"a {type(make_teacher).__name__}"
        raise TypeError(error_message("folds need a function that makes a teacher for each", received, remedy))
    _check_signature(make_teacher)
    labeller = _Labeller(make_teacher, dataset, Path(path), folds, groups, seed, dict(options))
    return labeller.run()


class _Labeller:
    """The folds of one store, and who may do what of them."""

    def __init__(
        self,
        make_teacher: MakeTeacher,
        dataset: Data,
        path: Path,
        folds: int,
        groups: ArrayLike | None,
        seed: int,
        options: dict[str, Any],
    ):
        _check_options(options)
        inputs, self.labels = _inputs_and_labels(dataset)
        self.make_teacher, self.path, self.options = make_teacher, path, options
        self.source = ArraySource((inputs,), options["num_items"], options["batch_size"])
        num_items, self.num_folds = self.source.num_items, folds
        lengths = sorted({len(array) for array in keras.tree.flatten(self.labels)})
        if lengths != [num_items]:
            raise ValueError(error_message(f"there must be {num_items} labels, one for every item", lengths))
        # Labels in a structure, of several outputs, name no one class.
        classes = np.zeros((num_items, 2)) if keras.tree.is_nested(self.labels) else self.labels
        self.fold_of = assign_folds(classes, folds, groups=groups, seed=seed)
        digest = hashlib.sha256()
        for array in keras.tree.flatten(self.labels):
            array = array.astype(str) if array.dtype.hasobject else array
            digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        self.plan = {
            "calibrated_on": _calibrated_on(options["calibrate"], dataset),
            "from_logits": options["from_logits"],
            "num_folds": folds,
            "seed": int(seed),
            "labels": digest.hexdigest()[:32],
            "item_folds": hashlib.sha256(self.fold_of.astype("<u4").tobytes()).hexdigest()[:32],
            "made_by": _name_of(make_teacher),
        }

    def run(self) -> SoftTargetStore | None:
        """Labels the folds of this process, and puts the store together once all of them are there."""
        if self._is_finished():
            return SoftTargetStore.open(self.path, verify=False)
        self._begin()
        mine = range(self.options["process"], self.num_folds, self.options["num_processes"])
        num_done = sum(self._folder(fold).exists() for fold in mine)
        headline = f"{self.path}: {self.source.num_items:,} items in {self.num_folds} folds"
        shown = self.options["progress"]
        with progress_bar("folds", len(mine), shown, num_done=num_done, headline=headline) as advance:
            for fold in mine:
                if not self._folder(fold).exists() and not self._is_finished():
                    self._label(fold)
                    advance(1)
        try:
            if not all(self._folder(fold).exists() for fold in range(self.num_folds)):
                return SoftTargetStore.open(self.path, verify=False) if self._is_finished() else None
            self._put_together()
        except (FileNotFoundError, StoreError):
            # Another process was faster, and has swept the folds away.
            if not self._is_finished():
                raise
        return SoftTargetStore.open(self.path, verify=False)

    def _begin(self) -> None:
        """Says in the folder which folds are at work there, or finds the same said."""
        augmentation = self.options["augmentation"]
        plan = {
            **self.plan,
            **{name: value for name, value in self.options.items() if name not in _NO_SETTING},
            "augmentation": recipe(augmentation, self.source.first_item()) if augmentation else None,
            "num_items": self.source.num_items,
            "dataset": [self.source.fingerprint, self.source.every_item_fingerprint],
        }
        file = self.path / FOLDS / "plan.json"
        is_new = not (self.path / "manifest.json").exists()
        if is_new and (stranger := something_else(self.path, is_out_of_fold=True)):
            remedy = "Name a new folder, or one that an earlier `label` began."
            raise StoreError(error_message(f"{self.path} must be a store of soft targets", stranger, remedy))
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            publish_first(file, json.dumps(plan, indent=1, sort_keys=True) + "\n")
        _check_equal(self.path, json.loads(json.dumps(plan)), json.loads(file.read_text()))

    def _folder(self, fold: int) -> Path:
        return self.path / FOLDS / f"{fold:03d}"

    def _label(self, fold: int) -> None:
        """Makes the teacher of one fold and labels it: the fold's store appears whole, so that one teacher made it."""
        from keras_distill.targets.labelling import label

        held_back, seen = (np.flatnonzero(choice) for choice in (self.fold_of == fold, self.fold_of != fold))
        teacher = self.make_teacher(_take(self.source.inputs, seen), _take(self.labels, seen), fold)
        if not callable(teacher):
            remedy = "A fitted classifier goes into PredictProbaTeacher." if hasattr(teacher, "predict_proba") else ""
            expectation = f"{self.plan['made_by']} must return a teacher: a model, or a function from inputs to logits"
            raise TypeError(error_message(expectation, f"a {type(teacher).__name__} for fold {fold}", remedy))
        own = ("process", "num_processes", "rows_per_shard", "num_items", "teacher_fingerprint")
        options = {name: value for name, value in self.options.items() if name not in own}
        options["teacher_fingerprint"] = self.options["teacher_fingerprint"] or fingerprint(teacher)
        options["progress"] = False
        # Items of two folds that have the same place there are not to have the same random numbers.
        options["seed"] = (self.options["seed"] + fold) % 2**63
        if options["augmentation"] is not None:
            options["augmentation"] = _OfFold(options["augmentation"], held_back, self.source.num_items)
        with whole_folder(self._folder(fold)) as aside:
            # With their labels, by which a teacher can be calibrated on what it has not seen.
            items = _take(self.source.inputs, held_back), _take(self.labels, held_back)
            store = label(teacher, items, aside, **options)
            assert store is not None  # no other process has a share of it
            self._check_alike(store.manifest, fold)

    def _check_alike(self, manifest: Manifest, fold: int) -> None:
        """Raises `ValueError` where a fold's rows cannot stand beside those of a fold that is there."""
        manifests = ((other, begun(self._folder(other))) for other in range(self.num_folds))
        other, expected = next(((other, found) for other, found in manifests if found is not None), (fold, manifest))
        for name in _SHARED:
            wanted, found = getattr(expected, name), getattr(manifest, name)
            if found != wanted:
                expectation = f"{name} of fold {fold}'s teacher must be {wanted}, as of fold {other}'s"
                remedy = "Every teacher must answer for all classes, of which its folds may lack some."
                raise ValueError(error_message(expectation, found, remedy))

    def _put_together(self) -> None:
        """Writes the shards that are missing, out of the folds' stores."""
        stores = [SoftTargetStore.open(self._folder(fold)) for fold in range(self.num_folds)]
        for fold, store in enumerate(stores):
            self._check_alike(store.manifest, fold)
        manifest = create(self.path, self._manifest([store.manifest for store in stores]))
        missing = missing_shards(self.path, manifest, range(manifest.num_shards))
        check_room(self.path, manifest, missing)
        # An item's place in its fold.
        place_of = np.empty(len(self.fold_of), np.int64)
        for fold in range(self.num_folds):
            held_back = np.flatnonzero(self.fold_of == fold)
            place_of[held_back] = np.arange(len(held_back))
        for index in missing:
            numbers = np.arange(*manifest.shard_rows(index))
            views, ids = np.divmod(numbers, manifest.num_items)
            rows = np.empty(len(numbers), manifest.row_dtype)
            for fold, store in enumerate(stores):
                of_fold = self.fold_of[ids] == fold
                rows[of_fold] = store.rows(views[of_fold] * len(store) + place_of[ids[of_fold]])
            marked = manifest.marked_rows(index)
            marks = item_marks(self.source.inputs, marked % manifest.num_items)
            write_shard(self.path, manifest, index, rows, marks)
        finish(self.path, manifest)

    def _manifest(self, folds: Sequence[Manifest]) -> Manifest:
        teachers = " ".join(manifest.teacher_fingerprint for manifest in folds)
        num_rows = folds[0].num_views * self.source.num_items
        rows_per_shard = rows_per_shard_for(num_rows, folds[0].bytes_per_row, self.options["batch_size"])
        return replace(
            folds[0],
            num_items=self.source.num_items,
            teacher_fingerprint=self._name() or hashlib.sha256(teachers.encode()).hexdigest()[:32],
            dataset_fingerprint=self.source.fingerprint,
            every_item_fingerprint=self.source.every_item_fingerprint,
            rows_per_shard=self.options["rows_per_shard"] or rows_per_shard,
            shards=None,
            folds=self.plan,
        )

    def _temperatures(self) -> dict[str, Any]:
        """At which temperature rows are merged or drawn, by which seed, and in which type they are kept."""
        if self.options["sample"] is None:
            return {"temperature": self.options["temperature"], "dtype": self.options["dtype"]}
        temperature = self.options["temperature"]
        return {
            "sampling_temperature": 1.0 if temperature is None else float(temperature),
            "sampling_seed": self.options["seed"],
        }

    def _name(self) -> str | None:
        """What the user calls the teachers, where that says all: not how each one's logits were divided."""
        return self.options["teacher_fingerprint"] if self.plan["calibrated_on"] is None else None

    def _is_finished(self) -> bool:
        """Whether the store is there as it is asked for, every shard of it; raises `StoreError` for another one."""
        if (found := begun(self.path)) is None:
            return False
        options, augmentation = self.options, self.options["augmentation"]
        # What the teachers alone know is taken as it is there.
        expected = {
            "folds": self.plan,
            "num_items": self.source.num_items,
            "augmentation": recipe(augmentation, self.source.first_item()) if augmentation else None,
            **self._temperatures(),
            **{name: options[name] for name in ("top_k", "sample", "id_scheme")},
            **{name: options[name] for name in ("rows_per_shard", "views") if options[name]},
            **({"teacher_fingerprint": name} if (name := self._name()) else {}),
        }
        if "views" in expected:
            expected["num_views"] = expected.pop("views")
        settings = asdict(found) | {"members": found.member_weights is not None}
        # JSON has no tuples.
        _check_equal(self.path, *(json.loads(json.dumps(each)) for each in (expected, settings)))
        _check_equal(self.path, {"members": options["members"]}, settings)
        create(
            self.path,
            replace(
                found,
                dataset_fingerprint=self.source.fingerprint,
                every_item_fingerprint=self.source.every_item_fingerprint,
            ),
        )
        return not missing_shards(self.path, found, range(found.num_shards)) and finish(self.path, found)


class _OfFold:
    """An augmentation that sees the items of one fold under the ids that they have among all items."""

    def __init__(self, augmentation: "Augmentation", ids: np.ndarray, num_items: int):
        self._augmentation, self._ids, self._num_items = augmentation, ids, num_items

    def __getattr__(self, name: str) -> Any:
        return getattr(self._augmentation, name)

    def __call__(self, items: TensorTree, ids: np.ndarray, views: np.ndarray, partners: Any, num_items: int) -> Any:
        return self._augmentation(items, self._ids[ids], views, partners, self._num_items)


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises where what `label` was told does not go with folds."""
    check_count("batch_size", options["batch_size"])
    process, num_processes = options["process"], options["num_processes"]
    if not 0 <= check_count("process", process, 0) < check_count("num_processes", num_processes):
        raise ValueError(error_message(f"process must be in [0, num_processes = {num_processes})", process))
    augmentation = options["augmentation"]
    if augmentation is not None and augmentation.pairs_items:
        remedy = "The partner may be of a fold that the teacher was trained on. Leave it out."
        raise ValueError(
            error_message("an augmentation must keep to one item with folds", augmentation.steps[-1].name, remedy)
        )
    for name, why in {
        "mask": "Items are tokens then.",
        "engine": "Share the folds with process and num_processes.",
    }.items():
        if options[name] is not None:
            raise ValueError(error_message(f"{name} must be left out with folds", f"{options[name]!r:.80}", why))


def _inputs_and_labels(dataset: Data) -> tuple[TensorTree, TensorTree]:
    """The arrays of a data set, and those of its labels."""
    if is_stream(dataset) or gives_batches(dataset):
        remedy = "Give (inputs, labels), memory maps too: a teacher is trained on some of the items."
        raise ValueError(error_message("folds need a dataset of arrays", f"a {type(dataset).__name__}", remedy))
    if hasattr(dataset, "inputs") and hasattr(dataset, "labels"):
        dataset = dataset.inputs, dataset.labels
    if not isinstance(dataset, tuple) or len(dataset) < 2 or dataset[1] is None:
        received = f"a {type(dataset).__name__}" if not isinstance(dataset, tuple) else "inputs alone"
        remedy = "A teacher is trained for each fold."
        raise ValueError(error_message("folds need a dataset with labels, (inputs, labels)", received, remedy))
    if holds_strings(dataset[0]):
        remedy = "Make token ids of them first, keras_distill.models.preprocess_strings for one."
        raise ValueError(error_message("folds need inputs of numbers", "texts", remedy))
    return as_arrays(dataset[0]), as_arrays(dataset[1])


def _take(arrays: TensorTree, ids: np.ndarray) -> TensorTree:
    return keras.tree.map_structure(lambda array: array[ids], arrays)


def _calibrated_on(calibrate: Any, dataset: Data) -> str | None:
    """What the teachers are calibrated on: nothing, the fold that each has not seen, or examples, by a hash of them."""
    examples = calibration_examples(calibrate, dataset)
    if examples is None or calibrate is True:
        return None if examples is None else "the fold itself"
    parts = examples if isinstance(examples, tuple) else (examples.inputs, examples.labels)
    return inputs_fingerprint(keras.tree.map_structure(np.asarray, list(parts[:2])))


def _name_of(make_teacher: MakeTeacher) -> str:
    """What a function is known by from run to run: its `fingerprint` if it has one, else its name."""
    given = getattr(make_teacher, "fingerprint", None)
    if isinstance(given, str):
        return given
    named = make_teacher if hasattr(make_teacher, "__qualname__") else type(make_teacher)
    return f"{named.__module__}:{named.__qualname__}"


def _check_signature(make_teacher: MakeTeacher) -> None:
    """Raises `TypeError` where a function cannot be called as it will be, before anything is written."""
    try:
        signature = inspect.signature(make_teacher)
    except ValueError:
        # Of some functions in C nothing is known.
        return
    try:
        signature.bind(None, None, 0)
    except TypeError:
        remedy = "It is called once a fold, with the items of the others, and returns the teacher."
        expectation = f"{_name_of(make_teacher)} must be a function (inputs, labels, fold)"
        raise TypeError(error_message(expectation, f"one of {signature}", remedy)) from None


def _check_equal(path: Path, expected: Mapping[str, Any], received: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if name == "folds" and received.get(name) is not None:
            _check_equal(path, value, received[name])
        elif received.get(name) != value:
            remedy = "Go on with the data and settings that it was begun with, or name a new folder."
            expectation = f"{path}: {name} must be {value!r}, as asked for now"
            raise StoreError(error_message(expectation, repr(received.get(name)), remedy))
