"""A user's script, for type checkers alone: `tests/test_types.py` runs mypy and Pyright over it.

Lines that end in an E comment must be errors, and no other line may be one; an R comment names what is revealed.
"""

import keras
import numpy as np

import keras_distill as kd
from keras_distill.losses import SoftTargets

teacher: keras.Model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
student: keras.Model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
x, y = np.zeros((8, 4), "float32"), np.zeros(8, "int64")

distiller = kd.Distiller(teacher, student, SoftTargets(4.0), student_loss_weight=0.1)
reveal_type(kd.Distiller.__init__)  # noqa: F821  # R: student_loss_weight
reveal_type(kd.targets.label)  # noqa: F821  # R: teacher_fingerprint
reveal_type(kd.targets.attach)  # noqa: F821  # R: drop_remainder
reveal_type(kd.scale.Processes.__init__)  # noqa: F821  # R: threads_per_worker
reveal_type(kd.specialists.cluster_classes)  # noqa: F821  # R: num_clusters
reveal_type(kd.load_model)  # noqa: F821  # R: safe_mode
reveal_type(kd.deploy.ship)  # noqa: F821  # R: provenance
reveal_type(kd.Ensemble.__init__)  # noqa: F821  # R: weights
distiller.fit(x, y, 8, 1, "auto", [keras.callbacks.TerminateOnNaN()])
distiller.evaluate(x, y, batch_size=8)
distiller.predict(x, batch_size=8)
kd.Backup("backup", every=2)

kd.NoSuchThing  # noqa: B018  # E:
kd.targets.no_such_thing  # noqa: B018  # E:
kd.Distiller(teacher, student, bogus_loss=1)  # E:
distiller.fit(x, y, batch_size="many")  # E:
distiller.evaluate(x, y, no_such_argument=1)  # E:
kd.specialists.no_such_thing  # noqa: B018  # E:
