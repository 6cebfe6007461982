"""Other losses over logits: decoupled, relational, standardised, matched; over sigmoids; over plain numbers.

Not here: soft targets themselves (`soft_targets.py`) and losses over features (`features.py`, `relations.py`).
"""

from typing import Any

import keras
from keras import ops
from keras.src.backend import set_keras_mask

from keras_distill._checks import check_fraction, check_number, check_positive, complaint
from keras_distill.losses.logit_loss import LogitLoss, merged_logits, validate_logits
from keras_distill.losses.per_example import PerExampleLoss, at_least_float32, serialized
from keras_distill.losses.soft_targets import SoftTargets
from keras_distill.schedules import WarmUp, current


def target_classes(labels: Any, teacher_logits: Any) -> Any:
    """Each item's target class as a one-hot row; where it has no label, the class that the teacher thinks likeliest.

    Args:
        labels: integers `(...)` or `(..., 1)`, negative for «no label»; or one row a class, `(..., num_classes)`, of
            which the largest counts; or `None`.
        teacher_logits: float `(..., num_classes)`.

    Returns:
        Float `(..., num_classes)`, zeros and ones.

    Example:
        >>> target_classes([1, -1], [[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]]).numpy().tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    num_classes = teacher_logits.shape[-1] if hasattr(teacher_logits, "shape") else len(teacher_logits[0])
    teacher_logits = ops.convert_to_tensor(teacher_logits)
    likeliest = ops.cast(ops.argmax(teacher_logits, axis=-1), "int32")
    if labels is None:
        return ops.one_hot(likeliest, num_classes, dtype=teacher_logits.dtype)
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(teacher_logits.shape):
        labels = labels[..., 0] if labels.shape[-1] == 1 else ops.argmax(labels, axis=-1)
    labels = ops.cast(labels, "int32")
    return ops.one_hot(ops.where(labels < 0, likeliest, labels), num_classes, dtype=teacher_logits.dtype)


def decoupled(
    teacher_logits: Any, student_logits: Any, targets: Any, temperature: Any, *, alpha: Any = 1.0, beta: Any = 8.0
) -> Any:
    """T²·(α·TCKD + β·NCKD), for each example, in nats: what soft targets couple, with weights of its own.

    With p the teacher's and q the student's probability of the target class, at temperature T,

        TCKD = p·log(p / q) + (1 − p)·log((1 − p) / (1 − q))
        NCKD = Σ p̂ᵢ·log(p̂ᵢ / q̂ᵢ) over the other classes, p̂ and q̂ scaled to sum to one over them.

    Soft targets are T²·(TCKD + (1 − p)·NCKD): the surer the teacher, the less its dark knowledge counts there.

    Args:
        teacher_logits: float `(..., num_classes)`.
        student_logits: float, the same shape.
        targets: one-hot float, the same shape; see `target_classes`.
        temperature: T > 0.
        alpha: the weight of TCKD.
        beta: the weight of NCKD.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> loss = decoupled([[2.0, 0.0, 0.0]], [[2.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]], 1.0, alpha=0.0, beta=1.0)
        >>> round(float(loss[0]), 6)  # ½·log(½ / 0.731) + ½·log(½ / 0.269)
        0.120114

    Reference:
        Zhao et al., «Decoupled Knowledge Distillation», arXiv:2203.08679, sections 3.1 and 3.3, equation 7.
    """
    is_target = ops.cast(targets, "bool")
    teacher_target, teacher_rest, teacher_others = _split_target(teacher_logits, is_target, temperature)
    student_target, student_rest, student_others = _split_target(student_logits, is_target, temperature)
    target_class = ops.exp(teacher_target) * (teacher_target - student_target)
    target_class += ops.exp(teacher_rest) * (teacher_rest - student_rest)
    # At the target both are 0, and so is their difference.
    other_classes = ops.sum(ops.exp(teacher_others) * (teacher_others - student_others), axis=-1)
    return ops.square(ops.cast(temperature, target_class.dtype)) * (alpha * target_class + beta * other_classes)


def _split_target(logits: Any, is_target: Any, temperature: Any) -> tuple[Any, Any, Any]:
    """Log-probabilities of the target class, of all others together, and of each other among them (0 at the target)."""
    logits = at_least_float32(logits)
    log_probabilities = ops.log_softmax(logits / ops.cast(temperature, logits.dtype), axis=-1)
    target = ops.sum(ops.where(is_target, log_probabilities, 0.0), axis=-1)
    # 1 − p loses all digits where p is near one; the sum of the others does not.
    rest = ops.logsumexp(ops.where(is_target, -1e30, log_probabilities), axis=-1)
    return target, rest, ops.where(is_target, 0.0, log_probabilities - rest[..., None])


@keras.saving.register_keras_serializable(package="keras_distill")
class DecoupledKD(LogitLoss):
    """DKD: what the teacher thinks of the target class and of all the others, each with a weight of its own.

    It reads the labels. Items without one, and `keras.distillation.Distiller`, which hands no labels on, take the
    teacher's likeliest class for the target.

    Args:
        temperature: T > 0.
        alpha: the weight of the target class's divergence (TCKD).
        beta: the weight of the others' (NCKD); the paper's best are 1 to 10, larger for surer teachers.
        warm_up_epochs: over how many epochs the loss grows to its full weight; the authors' code takes 20 of 240.
        from_logits: as in `SoftTargets`.

    Raises:
        ValueError: a weight, a temperature or a length out of range.

    Example:
        >>> loss = DecoupledKD(temperature=4.0, alpha=1.0, beta=8.0)
        >>> round(float(loss.compute_loss([[2.0, 0.0, 1.0]], [[2.0, 0.0, 1.0]], labels=[0])), 6)
        0.0

    Reference:
        Zhao et al., arXiv:2203.08679, section 3.3.
    """

    reads = ("labels",)

    def __init__(
        self,
        temperature: Any = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        warm_up_epochs: float = 0,
        *,
        from_logits: bool = True,
    ):
        super().__init__(temperature, from_logits=from_logits)
        self.alpha, self.beta = check_number("alpha", alpha), check_number("beta", beta)
        if min(self.alpha, self.beta) < 0.0:
            raise ValueError(complaint("alpha and beta", ">= 0", (self.alpha, self.beta)))
        self.warm_up_epochs = check_number("warm_up_epochs", warm_up_epochs)
        self.warm_up = WarmUp(1.0, warm_up_epochs) if warm_up_epochs else 1.0

    def of_logits(self, teacher_logits: Any, student_logits: Any, temperature: Any, labels: Any = None) -> Any:
        """Returns the loss of each example, `(...)`."""
        targets = target_classes(labels, teacher_logits)
        scale = ops.cast(current(self.warm_up), student_logits.dtype)
        alpha, beta = scale * self.alpha, scale * self.beta
        return decoupled(teacher_logits, student_logits, targets, temperature, alpha=alpha, beta=beta)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"alpha": self.alpha, "beta": self.beta, "warm_up_epochs": self.warm_up_epochs}
        return {**super().get_config(), **own}


def inter_class_relation(teacher_logits: Any, student_logits: Any, temperature: Any) -> Any:
    """1 − the correlation over classes of the two softened predictions, for each example.

    Args:
        teacher_logits: float `(..., num_classes)`.
        student_logits: float, the same shape.
        temperature: T > 0.

    Returns:
        float `(...)` in [0, 2].

    Example:
        >>> round(float(inter_class_relation([[1.0, 0.0]], [[0.0, 3.0]], 1.0)[0]), 6)  # opposite order
        2.0

    Reference:
        Huang et al., «Knowledge Distillation from A Stronger Teacher», arXiv:2205.10536, section 4.2, equation 8.
    """
    student = _softened(student_logits, temperature)
    teacher = ops.cast(_softened(teacher_logits, temperature), student.dtype)
    return 1.0 - _correlation(teacher, student, ops.ones_like(student), axis=-1)


def intra_class_relation(teacher_logits: Any, student_logits: Any, temperature: Any, item_weights: Any = None) -> Any:
    """1 − the correlation over items of what the two give one class, the mean over classes; a scalar.

    Args:
        teacher_logits: float `(..., num_classes)`; all leading axes are items.
        student_logits: float, the same shape.
        temperature: T > 0.
        item_weights: float `(...)`, the weight of each item in the moments; `None` weighs all the same.

    Returns:
        A scalar in [0, 2]; 1 for a single item, of which no correlation can be told.

    Example:
        >>> rows = [[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        >>> abs(round(float(intra_class_relation(rows, rows, 1.0)), 5))
        0.0

    Reference:
        Huang et al., arXiv:2205.10536, section 4.3, equation 9.
    """
    student = _softened(student_logits, temperature)
    teacher = ops.cast(_softened(teacher_logits, temperature), student.dtype)
    num_classes = student.shape[-1]
    teacher, student = ops.reshape(teacher, (-1, num_classes)), ops.reshape(student, (-1, num_classes))
    if item_weights is None:
        weights = ops.ones_like(student)
    else:
        weights = ops.reshape(ops.cast(item_weights, student.dtype), (-1, 1)) * ops.ones_like(student)
    return ops.mean(1.0 - _correlation(teacher, student, weights, axis=0))


def _softened(logits: Any, temperature: Any) -> Any:
    logits = at_least_float32(logits)
    return ops.softmax(logits / ops.cast(temperature, logits.dtype), axis=-1)


def _correlation(first: Any, second: Any, weights: Any, axis: int) -> Any:
    """Pearson's, weighted; 0 where one of the two does not vary."""
    weights = ops.divide_no_nan(weights, ops.sum(weights, axis=axis, keepdims=True))
    first = first - ops.sum(weights * first, axis=axis, keepdims=True)
    second = second - ops.sum(weights * second, axis=axis, keepdims=True)
    # The constant keeps the gradient finite where a student begins with equal predictions.
    first *= ops.rsqrt(ops.sum(weights * ops.square(first), axis=axis, keepdims=True) + 1e-12)
    second *= ops.rsqrt(ops.sum(weights * ops.square(second), axis=axis, keepdims=True) + 1e-12)
    return ops.sum(weights * first * second, axis=axis)


@keras.saving.register_keras_serializable(package="keras_distill")
class DIST(LogitLoss):
    """Relations in place of values: T²·(β·inter-class + γ·intra-class relation).

    A much stronger teacher's probabilities are hard to match; their order and proportions are what this asks for.

    Args:
        temperature: T > 0; the paper takes 4 on CIFAR-100, 1 on ImageNet.
        beta: the weight of the relation between the classes of one item.
        gamma: the weight of the relation between the items of one class.
        from_logits: as in `SoftTargets`.

    Raises:
        ValueError: a weight or the temperature out of range.

    Example:
        >>> loss = DIST(temperature=1.0, beta=1.0, gamma=0.0)
        >>> round(float(loss.compute_loss([[1.0, 0.0]], [[0.0, 3.0]])), 6)
        2.0

    Reference:
        Huang et al., arXiv:2205.10536, section 4, equations 8 to 10.
    """

    reads = ("item_weights",)

    def __init__(self, temperature: Any = 4.0, beta: float = 1.0, gamma: float = 1.0, *, from_logits: bool = True):
        super().__init__(temperature, from_logits=from_logits)
        self.beta, self.gamma = check_number("beta", beta), check_number("gamma", gamma)
        if min(self.beta, self.gamma) < 0.0:
            raise ValueError(complaint("beta and gamma", ">= 0", (self.beta, self.gamma)))

    def of_logits(self, teacher_logits: Any, student_logits: Any, temperature: Any, item_weights: Any = None) -> Any:
        """Returns the loss of each example, `(...)`: its own relation, plus the batch's."""
        if item_weights is not None:
            item_weights = _one_for_each(item_weights, student_logits)
        inter = inter_class_relation(teacher_logits, student_logits, temperature)
        intra = intra_class_relation(teacher_logits, student_logits, temperature, item_weights)
        return ops.square(ops.cast(temperature, inter.dtype)) * (self.beta * inter + self.gamma * intra)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "beta": self.beta, "gamma": self.gamma}


def _one_for_each(item_weights: Any, outputs: Any) -> Any:
    """Weights `(batch, …)` for every entry of the outputs' leading axes: a sequence's weight is each token's."""
    if len(item_weights.shape) == len(outputs.shape):
        item_weights = item_weights[..., 0]
    missing = len(outputs.shape) - 1 - len(item_weights.shape)
    weights = ops.reshape(item_weights, (*ops.shape(item_weights), *[1] * missing))
    return ops.broadcast_to(weights, ops.shape(outputs)[:-1])


def standardized(logits: Any) -> Any:
    """(z − mean) / standard deviation, over the classes: what is left of logits is their order and proportions.

    Args:
        logits: float `(..., num_classes)`.

    Returns:
        The same shape, at least float32, of mean 0 and standard deviation 1; 0 where all logits are equal.

    Example:
        >>> [round(float(z), 4) for z in standardized([[3.0, 1.0, 2.0, 2.0]])[0]]
        [1.4142, -1.4142, 0.0, 0.0]

    Reference:
        Sun et al., «Logit Standardization in Knowledge Distillation», arXiv:2403.01427, algorithm 1, whose
        deviation divides by the number of classes K. The authors' code and their figure 2 divide by K − 1, which is
        this at a temperature √(K / (K − 1)) times as high.
    """
    logits = at_least_float32(logits)
    centred = logits - ops.mean(logits, axis=-1, keepdims=True)
    return centred * ops.rsqrt(ops.mean(ops.square(centred), axis=-1, keepdims=True) + 1e-12)


@keras.saving.register_keras_serializable(package="keras_distill")
class LogitStandardization(PerExampleLoss):
    """Another logit loss on standardised logits: the student need not match how large the teacher's are.

    Args:
        loss: the loss of logits that is wrapped; its temperature is the paper's base temperature. `None` is
            `SoftTargets(temperature=2.0)`.

    Raises:
        TypeError: `loss` is no loss over logits.

    Example:
        >>> loss = LogitStandardization(SoftTargets(2.0))
        >>> round(float(loss.compute_loss([[2.0, -1.0, 0.5]], [[4.0, -2.0, 1.0]])), 6)  # twice the logits
        0.0

    Reference:
        Sun et al., arXiv:2403.01427, section 4.3, algorithms 1 and 2; λ is 9 beside a hard loss of weight 0.1 there.
    """

    def __init__(self, loss: Any = None):
        loss = SoftTargets(temperature=2.0) if loss is None else loss
        if not isinstance(loss, PerExampleLoss) or loss.teacher_layer_name is not None or loss.head != "softmax":
            raise TypeError(complaint("loss", "a loss over logits, such as SoftTargets", type(loss).__name__))
        self.loss = loss
        self.reads = loss.reads
        self.head = loss.head
        self.from_logits = getattr(loss, "from_logits", True)

    @property
    def layers(self) -> list[keras.Layer]:
        """The wrapped loss's own layers."""
        return self.loss.layers

    def per_example(self, teacher_outputs: Any, student_outputs: Any, **context: Any) -> Any:
        """Returns the wrapped loss of each example, `(...)`."""
        if isinstance(teacher_outputs, dict):
            # The mean of standardised members, since there is no one set of logits to standardise.
            if "member_logits" not in teacher_outputs:
                merged_logits(teacher_outputs, 1.0)
            members = standardized(teacher_outputs["member_logits"])
            teacher_outputs = {**teacher_outputs, "member_logits": members}
        else:
            teacher_outputs = standardized(teacher_outputs)
        return self.loss.per_example(teacher_outputs, standardized(student_outputs), **context)

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `ValueError` where the wrapped loss would."""
        self.loss.validate_outputs(teacher_outputs, student_outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"loss": serialized(self.loss)}


def logit_matching(teacher_logits: Any, student_logits: Any, center: bool = True) -> Any:
    """Σ (z − v)² / (2·num_classes) of zero-meaned logits, for each example: what soft targets become as T grows.

    T²·KL tends to it, with an error of order 1/T; its gradient is (z − v) / num_classes.

    Args:
        teacher_logits: v, float `(..., num_classes)`.
        student_logits: z, float, the same shape.
        center: whether each row's mean is taken off first, as a softmax would; `False` matches the constant too.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> round(float(logit_matching([[1.0, 0.0]], [[4.0, 1.0]])[0]), 6)  # ±0.5 against ±1.5
        0.5

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.1, equations 2 to 4.
    """
    difference = at_least_float32(student_logits)
    difference = difference - ops.cast(at_least_float32(teacher_logits), difference.dtype)
    if center:
        difference = difference - ops.mean(difference, axis=-1, keepdims=True)
    return 0.5 * ops.mean(ops.square(difference), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class LogitMatching(LogitLoss):
    """Matching logits: the limit of soft targets at high temperature, where all of the teacher's logits count.

    Args:
        center: whether each row's mean is taken off first, as a softmax would.
        from_logits: as in `SoftTargets`.

    Example:
        >>> round(float(LogitMatching().compute_loss([[1.0, 0.0]], [[4.0, 1.0]])), 6)
        0.5

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.1; Ba, Caruana, arXiv:1312.6184, section 2.2.
    """

    def __init__(self, center: bool = True, *, from_logits: bool = True):
        # Members are merged as at temperature 1.
        super().__init__(1.0, from_logits=from_logits)
        self.center = bool(center)

    def of_logits(self, teacher_logits: Any, student_logits: Any, temperature: Any) -> Any:
        """Returns the loss of each example, `(...)`."""
        return logit_matching(teacher_logits, student_logits, self.center)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"center": self.center, "from_logits": self.from_logits}


def binary_soft_targets(teacher_logits: Any, student_logits: Any, temperature: Any) -> Any:
    """T²·KL of the softened sigmoids, each label a Bernoulli of its own, the mean over labels, in nats.

    With p = σ(v / T) and q = σ(z / T): T²·(p·log(p / q) + (1 − p)·log((1 − p) / (1 − q))). The mean, as
    `BinaryCrossentropy` takes it, so that the two terms keep their proportion.

    Args:
        teacher_logits: v, float `(..., num_labels)`, before the sigmoid.
        student_logits: z, float, the same shape.
        temperature: T > 0.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> round(float(binary_soft_targets([[0.0]], [[2.0]], 1.0)[0]), 6)  # −½·log(4·σ(2)·σ(−2))
        0.433781

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2, with a sigmoid for the softmax.
    """
    teacher_logits, student_logits = at_least_float32(teacher_logits), at_least_float32(student_logits)
    teacher_logits = ops.cast(teacher_logits, student_logits.dtype)
    temperature = ops.cast(temperature, student_logits.dtype)
    teacher, student = teacher_logits / temperature, student_logits / temperature
    divergence = ops.sigmoid(teacher) * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
    divergence += ops.sigmoid(-teacher) * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
    return ops.square(temperature) * ops.mean(ops.maximum(divergence, 0.0), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class BinarySoftTargets(LogitLoss):
    """Soft targets for sigmoids: multilabel models, and binary ones with a single unit.

    Args:
        temperature: T > 0.
        from_logits: `False` where the loss is used in plain Keras on models that end in a sigmoid.

    Example:
        >>> round(float(BinarySoftTargets(1.0).compute_loss([[0.0]], [[2.0]])), 6)
        0.433781

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2, with a sigmoid for the softmax.
    """

    head = "sigmoid"

    def per_example(self, teacher_outputs: Any, student_outputs: Any, **context: Any) -> Any:
        """Returns the loss of each example, `(...)`, of logits `(..., num_labels)` or an ensemble's members."""
        temperature = current(self.temperature)
        if not self.from_logits:
            teacher_outputs, student_outputs = map(_sigmoid_logits, (teacher_outputs, student_outputs))
        if isinstance(teacher_outputs, dict):
            teacher_outputs = _merged_sigmoid_logits(teacher_outputs, temperature)
        return binary_soft_targets(teacher_outputs, student_outputs, temperature)

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `ValueError` where the two differ in rank or in the number of labels."""
        validate_logits(teacher_outputs, student_outputs)


def _sigmoid_logits(probabilities: Any) -> Any:
    probabilities = ops.clip(at_least_float32(probabilities), 1e-7, 1.0 - 1e-7)
    return ops.log(probabilities) - ops.log(1.0 - probabilities)


def _merged_sigmoid_logits(teacher_outputs: dict[str, Any], temperature: Any) -> Any:
    """T·logit of the members' mean σ(memberₘ / T), in the log domain."""
    if "member_logits" not in teacher_outputs:
        merged_logits(teacher_outputs, temperature)
    members = at_least_float32(teacher_outputs["member_logits"]) / temperature
    log_weights = ops.log(ops.cast(teacher_outputs["member_weights"], members.dtype))[..., None]
    log_on = ops.logsumexp(ops.log_sigmoid(members) + log_weights, axis=-2)
    return temperature * (log_on - ops.logsumexp(ops.log_sigmoid(-members) + log_weights, axis=-2))


def regression_targets(teacher_values: Any, student_values: Any, delta: float | None = None) -> Any:
    """½·(student − teacher)², or Huber's loss of it, the mean over the last axis, for each example.

    Args:
        teacher_values: float `(..., num_values)`.
        student_values: float, the same shape.
        delta: where Huber's loss turns from a square to a line, in the values' unit; `None` keeps the square.

    Returns:
        float `(...)`, at least float32.

    Example:
        >>> regression_targets([[0.0], [0.0]], [[2.0], [4.0]], delta=3.0).numpy().tolist()
        [2.0, 7.5]

    Reference:
        Chen et al., «Learning Efficient Object Detection Models with Knowledge Distillation», NeurIPS 2017, section
        3.3, for teachers of regressions.
    """
    student_values = at_least_float32(student_values)
    difference = ops.abs(student_values - ops.cast(teacher_values, student_values.dtype))
    values = 0.5 * ops.square(difference)
    if delta is not None:
        values = ops.where(difference <= delta, values, delta * (difference - 0.5 * delta))
    return ops.mean(values, axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class RegressionTargets(PerExampleLoss):
    """The teacher's numbers as targets, for models that predict quantities and not classes.

    Args:
        delta: where Huber's loss turns from a square to a line; `None` keeps the square.
        margin: `None` learns every prediction of the teacher's. A number learns only those of items whose student is
            worse than the teacher, by this much in squared error, against the labels; items without finite labels are
            learnt from always. It reads the labels.

    Raises:
        ValueError: `delta` not > 0, or `margin` < 0.

    Example:
        >>> loss = RegressionTargets(margin=0.0)
        >>> values = loss.per_example([[1.0], [1.0]], [[3.0], [0.1]], labels=[[0.0], [0.0]])
        >>> values.numpy().tolist()  # the second student is already nearer to the label than its teacher
        [2.0, 0.0]

    Reference:
        Chen et al., NeurIPS 2017, section 3.3, equation 4: the teacher as an upper bound.
    """

    def __init__(self, delta: float | None = None, margin: float | None = None):
        self.delta = None if delta is None else check_positive("delta", delta)
        self.margin = None if margin is None else check_number("margin", margin)
        if self.margin is not None and self.margin < 0.0:
            raise ValueError(complaint("margin", ">= 0", self.margin))
        self.reads = () if margin is None else ("labels",)

    def per_example(self, teacher_outputs: Any, student_outputs: Any, labels: Any = None) -> Any:
        """Returns the loss of each example, `(...)`, of numbers `(..., num_values)` or an ensemble's members."""
        if isinstance(teacher_outputs, dict):
            weights = at_least_float32(teacher_outputs["member_weights"])[..., None]
            teacher_outputs = ops.sum(at_least_float32(teacher_outputs["member_logits"]) * weights, axis=-2)
        values = regression_targets(teacher_outputs, student_outputs, self.delta)
        if labels is None or self.margin is None:
            return values
        labels = ops.reshape(ops.cast(labels, values.dtype), ops.shape(student_outputs))
        student_error = ops.sum(ops.square(ops.cast(student_outputs, values.dtype) - labels), axis=-1)
        teacher_error = ops.sum(ops.square(ops.cast(teacher_outputs, values.dtype) - labels), axis=-1)
        return ops.where(student_error + self.margin <= teacher_error, 0.0, values)

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `ValueError` where the two differ in rank or in the number of values."""
        validate_logits(teacher_outputs, student_outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"delta": self.delta, "margin": self.margin}


@keras.saving.register_keras_serializable(package="keras_distill")
class SmoothedLabels(keras.losses.Loss):
    """Hard labels of which every class gets a little: a control for what soft targets bring beyond smoothing.

    A plain Keras loss over integer labels: `Distiller(teacher, student, student_loss_weight=1.0)` compiled with it
    trains the same student, in the same steps, without the teacher. Items whose label is negative count in no mean, as
    under `SparseCategoricalCrossentropy(ignore_class=-1)`.

    Args:
        smoothing: ε in [0, 1]: the target class gets 1 − ε + ε / num_classes, each other one ε / num_classes.
        from_logits: whether the student ends in logits.
        name: the loss's name.
        reduction: as in `keras.losses.Loss`.

    Example:
        >>> loss = SmoothedLabels(0.2)
        >>> round(float(loss([0], [[2.0, 0.0]])), 6)  # log(1 + e⁻²) + 0.1·2
        0.326928

    Reference:
        Szegedy et al., «Rethinking the Inception Architecture», arXiv:1512.00567, section 7.
    """

    def __init__(
        self,
        smoothing: float = 0.1,
        from_logits: bool = True,
        name: str = "smoothed_labels",
        reduction: str = "sum_over_batch_size",
    ):
        super().__init__(name=name, reduction=reduction)
        self.smoothing = check_fraction("smoothing", smoothing)
        self.from_logits = bool(from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The cross-entropy of each example, `(...)`."""
        y_pred = at_least_float32(y_pred)
        log_probabilities = ops.log_softmax(y_pred if self.from_logits else ops.log(ops.maximum(y_pred, 1e-30)))
        targets = target_classes(y_true, y_pred)
        targets = (1.0 - self.smoothing) * targets + self.smoothing / y_pred.shape[-1]
        values = -ops.sum(targets * log_probabilities, axis=-1)
        labels = ops.convert_to_tensor(y_true)
        if len(labels.shape) == len(y_pred.shape) and labels.shape[-1] != 1:
            return values
        is_labelled = ops.reshape(labels, ops.shape(values)) >= 0
        values = ops.where(is_labelled, values, 0.0)
        # As Keras's own `ignore_class` does it: `Loss.__call__` takes the mean over what the mask leaves.
        set_keras_mask(values, is_labelled)
        return values

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "smoothing": self.smoothing, "from_logits": self.from_logits}
