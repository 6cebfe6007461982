"""A run of `keras-distill specialists`: a folder of models, each made once, so that a run that was killed goes on."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._files import whole_file

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset, Split
    from keras_distill.scale import Engine
    from keras_distill.specialists import Clusters
    from keras_distill.targets import Augmentation


@dataclass(frozen=True)
class Clustering:
    """How classes are grouped."""

    num_clusters: int
    cluster_size: int | None
    cluster_temperature: float
    method: str


@dataclass(frozen=True)
class Training:
    """How each specialist, and the control, is trained; and how they are merged."""

    steps: int
    trained: str
    dustbin: str
    batch_size: int
    learning_rate: float
    soft_target_weight: float
    temperature: float
    flip: bool
    shift: int
    num_routes: int
    generalist_weight: float
    seed: int


@dataclass(frozen=True)
class DistillingBack:
    """How the merged model is distilled into one net; not at all for 0 epochs."""

    distill_back: int
    distill_start: str
    distill_temperature: float
    distill_learning_rate: float


@dataclass(frozen=True)
class SpecialistsRun:
    """The models of one run, in the folder `out`.

    Attributes:
        generalist: the model that everything starts from.
        generalist_file: where it lies.
        dataset: what is trained and measured on, `dataset_name` on the command line.
    """

    clustering: Clustering
    training: Training
    distilling_back: DistillingBack
    generalist: "keras.Model"
    generalist_file: Path
    dataset: "Dataset"
    dataset_name: str
    out: Path

    def keep_settings(self) -> None:
        """Writes down what the folder is the result of; raises `ValueError` where it is that of another run."""
        from keras_distill.targets.fingerprints import inputs_fingerprint

        settings = {
            **asdict(self.clustering),
            **asdict(self.training),
            "data": self.dataset_name,
            "generalist": sha256(self.generalist_file.read_bytes()).hexdigest(),
            "inputs": inputs_fingerprint(self.dataset.train.inputs),
        }
        _keep(settings, self.out / "settings.json")
        if self.distilling_back.distill_back:
            _keep(asdict(self.distilling_back), self.out / "distillation.json")

    @cached_property
    def logits(self) -> np.ndarray:
        """The generalist's logits on the training set, computed once; float32 `(num_items, num_classes)`."""
        path = self.out / "generalist_logits.npy"
        if not path.exists():
            logits = predict(self.generalist, self.dataset.train)
            with whole_file(path) as aside:
                np.save(aside, logits)
        return np.load(path)

    @cached_property
    def clusters(self) -> "Clusters":
        """The groups of classes, found once, with a picture of them."""
        from keras_distill import specialists

        clusters = specialists.cluster_classes(
            (self.logits[start : start + 4096] for start in range(0, len(self.logits), 4096)),
            self.clustering.num_clusters,
            size=self.clustering.cluster_size,
            temperature=self.clustering.cluster_temperature,
            method=self.clustering.method,
            seed=self.training.seed,
        )
        path = self.out / "clusters.json"
        if path.exists():
            # What specialists were trained for stays, also where another machine's k-means would differ.
            kept = json.loads(path.read_text())
            return specialists.Clusters(kept["class_sets"], kept["uncovered"], clusters.similarity)
        with whole_file(self.out / "confusable.png") as aside:
            specialists.heat_map(clusters, self.dataset.class_names, aside)
        names = [[self.dataset.class_names[label] for label in class_set] for class_set in clusters.class_sets]
        write_json(path, {"class_sets": clusters.class_sets, "uncovered": clusters.uncovered, "names": names})
        return clusters

    @cached_property
    def augmentation(self) -> "Augmentation | None":
        """What --flip and --shift ask for; `None` without them."""
        import keras

        from keras_distill.targets import Augmentation, Shift

        flip = [keras.layers.RandomFlip("horizontal")] if self.training.flip else []
        shift = [Shift(self.training.shift)] if self.training.shift else []
        return Augmentation(*flip, *shift, seed=self.training.seed) if flip or shift else None

    @cached_property
    def features(self) -> Any:
        """What the frozen layers make of all examples, computed when the first training asks; `None` where none are."""
        from keras_distill.specialists.frozen import frozen_features

        if self.training.trained == "all" or self.augmentation is not None:
            return None
        return frozen_features(self.generalist, self.dataset.train.inputs, self.training.trained)

    def train_by(self, engine: "Engine") -> None:
        """All specialists by an engine's workers; `specialist` finds them made."""
        from keras_distill import specialists

        specialists.train_all(
            self.generalist,
            self.clusters.class_sets,
            self.dataset.train,
            self.out,
            engine=engine,
            num_steps=self.training.steps,
            dustbin=self.training.dustbin,
            generalist_logits=self.logits,
            # A graph cannot travel to a worker.
            **self._recipe(self.training.seed) | {"augmentation": self.augmentation},
        )

    def specialist(self, position: int) -> "keras.Model":
        """The specialist of one group."""
        from keras_distill import specialists

        name = f"specialist-{position:03d}"
        return self._made_once(
            name,
            lambda: specialists.train(
                self.generalist,
                self.clusters.class_sets[position],
                self.dataset.train,
                num_steps=self.training.steps,
                dustbin=self.training.dustbin,
                generalist_logits=self.logits,
                features=self.features,
                backup_dir=self.out / f".{name}",
                **self._recipe(self.training.seed + position),
            ),
        )

    def models(self) -> dict[str, "keras.Model"]:
        """The generalist, the control and the merged model, by name."""
        from keras_distill import specialists

        experts = [self.specialist(position) for position in range(len(self.clusters.class_sets))]
        control = self._made_once(
            "control",
            lambda: specialists.train_control(
                self.generalist,
                self.dataset.train,
                num_steps=self.training.steps * len(experts),
                teacher_logits=self.logits,
                features=self.features,
                backup_dir=self.out / ".control",
                **self._recipe(self.training.seed),
            ),
        )
        merged = self._made_once(
            "ensemble",
            lambda: specialists.SpecialistEnsemble(
                self.generalist,
                experts,
                self.clusters.class_sets,
                num_routes=self.training.num_routes,
                generalist_weight=self.training.generalist_weight,
            ),
        )
        return {"generalist": self.generalist, "control": control, "merged": merged}

    def distilled_back(self, models: dict[str, "keras.Model"]) -> dict[str, "keras.Model"]:
        """Nets of the generalist's architecture, taught by each of the three, all with the same batches."""
        import keras

        from keras_distill import specialists

        back = self.distilling_back
        num_steps = back.distill_back * -(-len(self.dataset.train) // self.training.batch_size)
        recipe = self._recipe(self.training.seed) | {
            "trained": "all",
            "learning_rate": back.distill_learning_rate,
            "temperature": back.distill_temperature,
            "soft_target_weight": 0.5,
        }
        found = {}
        for name, teacher in (
            ("self-distilled", "generalist"),
            ("control, distilled", "control"),
            ("merged, distilled", "merged"),
        ):
            keras.utils.set_random_seed(self.training.seed + 1000)
            is_fresh = back.distill_start == "fresh"
            start = keras.models.clone_model(self.generalist) if is_fresh else self.generalist

            def make(start: "keras.Model" = start, teacher: str = teacher) -> "keras.Model":
                return specialists.train_control(
                    start,
                    self.dataset.train,
                    teacher=models[teacher],
                    num_steps=num_steps,
                    backup_dir=self.out / f".{teacher}-distilled",
                    **recipe,
                )

            found[name] = self._made_once(f"distilled-from-{teacher}", make)
        return found

    def cost(self) -> dict[str, Any]:
        """What the models cost, and all of them together; of one whose training was killed, the last part."""
        models = {path.stem: json.loads(path.read_text()) for path in sorted((self.out / "cost").glob("*.json"))}
        totals = {name: sum(part[name] for part in models.values()) for name in ("seconds", "cpu_seconds")}
        return {"models": models, **totals}

    def _recipe(self, seed: int) -> dict[str, Any]:
        """The options that specialists, the control and the nets distilled back share, in this process."""
        shared = ("trained", "batch_size", "learning_rate", "soft_target_weight", "temperature")
        options = {name: getattr(self.training, name) for name in shared}
        return {**options, "augmentation": self.augmentation, "seed": seed}

    def _made_once(self, name: str, make: Callable[[], "keras.Model"]) -> "keras.Model":
        """The model `name`; made and saved, whole, where there is none, with what it cost beside it."""
        from keras_distill.models.saving import load_model

        path = self.out / f"{name}.keras"
        if not path.exists():
            start, cpu_start = time.perf_counter(), time.process_time()
            model = make()
            cost = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
            write_json(self.out / "cost" / f"{name}.json", cost)
            with whole_file(path) as aside:
                model.save(aside)
        return load_model(path, compile=False)


def predict(model: "keras.Model", split: "Split") -> np.ndarray:
    """A classifier's logits on a split, `(num_items, num_classes)`."""
    from keras_distill.models import logits_model

    return logits_model(model).predict(split.inputs, batch_size=512, verbose=0)


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(json.dumps(content, indent=1))


def _keep(settings: dict[str, Any], path: Path) -> None:
    """Writes settings down; raises `ValueError` where others are there: two runs do not mix."""
    if not path.exists():
        write_json(path, settings)
        return
    older = json.loads(path.read_text())
    differ = [name for name in settings if older.get(name) != settings[name]]
    if differ:
        changed = ", ".join(f"{name} {older.get(name)!r} → {settings[name]!r}" for name in differ)
        raise ValueError(f"{path.parent} must hold a run with these settings; got {changed}. Choose another --out.")
