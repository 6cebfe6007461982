"""Hints, projectors and attention maps against hand values and independent NumPy."""

import numpy as np
import pytest
import scipy.ndimage
from backend import gradient
from keras import Input, layers

from keras_distill.losses import AttentionTransfer, Hint, Projector, attention_map, attention_transfer, hint
from keras_distill.losses.projector import resized


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def numpy_attention(features, power=2.0):
    energy = np.mean(np.abs(features.astype("float64")) ** power, axis=-1).reshape(len(features), -1)
    return energy / np.linalg.norm(energy, axis=-1, keepdims=True)


def test_hint_is_half_the_mean_square_over_channels():
    teacher, student = draw(2, 3, 3, 4), draw(2, 3, 3, 4, seed=1)
    expected = 0.5 * np.mean((teacher.astype("float64") - student) ** 2, axis=-1)
    np.testing.assert_allclose(hint(teacher, student), expected, rtol=1e-5)


def test_hint_without_projector_needs_equal_shapes():
    with pytest.raises(ValueError, match=r"\(4,\) an item, as the teacher's do; got \(3,\).*builds and trains"):
        Hint("layer").validate_outputs(draw(2, 4), draw(2, 3))
    with pytest.raises(ValueError, match="have rank 4"):
        Hint("layer").build(draw(2, 3, 3, 4), draw(2, 4))


@pytest.mark.parametrize(
    ("teacher_shape", "student_shape", "size"),
    [
        ((2, 8), (2, 5), None),
        ((2, 6, 8), (2, 6, 5), None),
        ((2, 6, 8), (2, 3, 5), [6]),
        ((2, 4, 4, 8), (2, 4, 4, 5), None),
        ((2, 4, 4, 8), (2, 8, 8, 5), [4, 4]),
        ((2, 5, 7, 8), (2, 3, 3, 5), [5, 7]),
    ],
)
def test_projector_is_built_for_the_shapes(teacher_shape, student_shape, size):
    loss = Hint("layer")
    teacher, student = draw(*teacher_shape), draw(*student_shape)
    loss.build(teacher, student)
    assert loss.projector.size == size
    assert loss.projector.dense.kernel.shape == (5, 8)
    assert loss.per_example(teacher, student).shape == teacher_shape[:-1]


def test_equal_shapes_need_no_map():
    loss = Hint("layer")
    loss.build(draw(2, 4), draw(2, 4))
    assert loss.projector.weights == []
    np.testing.assert_array_equal(loss.projector(draw(2, 4)), draw(2, 4))


def test_projector_of_images_is_a_convolution_of_one_by_one():
    projector, images = Projector(8), draw(2, 3, 4, 5)
    projected = projector(images)
    convolution = layers.Conv2D(8, 1)
    convolution.build(images.shape)
    convolution.set_weights([projector.dense.kernel.numpy()[None, None], projector.dense.bias.numpy()])
    np.testing.assert_allclose(projected, convolution(images), atol=1e-5)


@pytest.mark.parametrize("size", [[2, 2], [5, 6], [8, 8]])
def test_projecting_and_resizing_commute(size):
    projector, images = Projector(3, size), draw(2, 4, 4, 5)
    projected = projector(images)
    projector.dense.bias.assign([1.0, -2.0, 0.5])
    projected = projector(images)
    np.testing.assert_allclose(projected, resized(projector.dense(images), size), atol=1e-5)
    np.testing.assert_allclose(projected, projector.dense(resized(images, size)), atol=1e-5)


def test_smaller_maps_are_block_means():
    images = draw(2, 6, 8, 3)
    expected = images.reshape(2, 2, 3, 2, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(resized(images, (2, 2)), expected, rtol=1e-5, atol=1e-6)


def test_other_sizes_are_bilinear():
    images = draw(1, 4, 6, 2)
    places = np.meshgrid((np.arange(7) + 0.5) * 4 / 7 - 0.5, (np.arange(9) + 0.5) * 6 / 9 - 0.5, indexing="ij")
    expected = [
        scipy.ndimage.map_coordinates(images[0, :, :, channel].astype("float64"), places, order=1, mode="nearest")
        for channel in range(2)
    ]
    np.testing.assert_allclose(resized(images, (7, 9))[0], np.moveaxis(expected, 0, -1), atol=1e-5)


def test_times_are_resized_as_images_of_one_column():
    sequence = np.float32([[[0.0], [4.0]]])
    np.testing.assert_allclose(resized(sequence, [4])[0, :, 0], [0.0, 1.0, 3.0, 4.0])


def test_own_projector_is_used():
    loss = Hint("layer", projector=layers.Dense(4, use_bias=False, kernel_initializer="ones"))
    teacher, student = np.zeros((2, 4), "float32"), np.ones((2, 3), "float32")
    loss.build(teacher, student)
    assert loss.projector.kernel.shape == (3, 4)
    np.testing.assert_allclose(loss.per_example(teacher, student), 4.5)  # ½·3²
    with pytest.raises(TypeError, match="projector must be a Keras layer or None; got str"):
        Hint("layer", projector="dense")


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_map_is_the_mean_power_scaled_to_length_one(power):
    features = draw(3, 4, 5, 6)
    np.testing.assert_allclose(attention_map(features, power), numpy_attention(features, power), rtol=1e-4)


def test_attention_transfer_is_the_mean_squared_difference_of_maps():
    teacher, student = draw(3, 4, 4, 6), draw(3, 4, 4, 2, seed=1)
    expected = np.mean((numpy_attention(teacher) - numpy_attention(student)) ** 2, axis=-1)
    np.testing.assert_allclose(attention_transfer(teacher, student), expected, rtol=1e-4)


def test_attention_does_not_see_the_scale_of_features():
    features = draw(2, 4, 4, 3)
    np.testing.assert_allclose(attention_transfer(features, -7.0 * features), 0.0, atol=1e-8)


def test_attention_of_a_larger_map_is_brought_to_the_smaller_one():
    teacher, student = draw(2, 8, 8, 3), draw(2, 4, 4, 5, seed=1)
    pooled = teacher.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    expected = np.mean((numpy_attention(pooled) - numpy_attention(student)) ** 2, axis=-1)
    np.testing.assert_allclose(attention_transfer(teacher, student), expected, rtol=1e-4)


def test_attention_gradient_of_a_dead_layer_is_finite():
    teacher, student = draw(2, 4, 4, 3), np.zeros((2, 4, 4, 3), "float32")
    assert np.isfinite(gradient(lambda features: attention_transfer(teacher, features), student)).all()


def test_attention_of_vectors_is_refused():
    with pytest.raises(ValueError, match=r"before the pooling; for vectors use Hint"):
        AttentionTransfer("layer").validate_outputs(draw(2, 4), draw(2, 4))
    AttentionTransfer("layer").validate_outputs(draw(2, 3, 4), draw(2, 3, 5))
    with pytest.raises(ValueError, match=r"have rank 4, as the teacher's do; got \(2, 3, 4\)"):
        AttentionTransfer("layer").validate_outputs(draw(2, 3, 3, 4), draw(2, 3, 4))


def test_features_of_several_members_are_refused():
    members = {"member_logits": draw(2, 3, 4), "member_weights": np.ones((2, 3)) / 3}
    for pair in [(members, draw(2, 4)), (draw(2, 4), members)]:
        with pytest.raises(ValueError, match="one tensor of the teacher and one of the student; got several"):
            Hint().validate_outputs(*pair)


def test_places_that_are_not_known_yet_are_compared_with_nothing():
    unknown, known = Input((None, 4)), Input((7, 4))
    for pair in [(unknown, known), (known, unknown), (unknown, unknown)]:
        Hint("layer").validate_outputs(*pair)
        AttentionTransfer("layer").validate_outputs(*pair)
    assert attention_transfer(unknown, Input((None, 3))).shape == (None,)
    with pytest.raises(ValueError, match=r"\(None, 4\) an item, as the teacher's do; got \(7, 3\)"):
        Hint("layer").validate_outputs(unknown, Input((7, 3)))
    for places in [(None, 7), (7, None), (None, None)]:
        projector = Projector()
        projector.match((None, places[0], 5), (None, places[1], 8))
        assert (projector.num_channels, projector.size) == (8, None)


def test_volumes_need_equal_places_or_a_projector_of_ones_own():
    projector = Projector()
    projector.match((2, 3, 3, 3, 5), (2, 3, 3, 3, 8))
    assert projector.dense.kernel.shape == (5, 8)
    with pytest.raises(ValueError, match="features of rank > 4 must have the same number of places"):
        Projector().match((2, 3, 3, 3, 5), (2, 6, 6, 6, 8))


@pytest.mark.parametrize(("size", "mapped"), [([2, 2], 4), ([2, 8], 16), ([4, 8], 16), ([8, 8], 16)])
def test_the_smaller_of_two_maps_is_projected(size, mapped):
    projector, images, sizes = Projector(3, size), draw(2, 4, 4, 5), []
    projector.build(images.shape)
    dense = projector.dense.call
    projector.dense.call = lambda inputs: (sizes.append(tuple(inputs.shape)), dense(inputs))[1]
    projected = projector(images)
    assert [shape[1] * shape[2] for shape in sizes] == [mapped]
    # Of equally many places the teacher's are taken.
    assert mapped != 16 or size != [2, 8] or sizes[0][1:3] == (2, 8)
    assert projected.shape == projector.compute_output_shape(images.shape) == (2, *size, 3)


def test_a_projector_tells_the_shape_that_it_gives():
    assert Projector().compute_output_shape((None, 7, 5)) == (None, 7, 5)
    assert Projector(8).compute_output_shape((None, 7, 5)) == (None, 7, 8)
    assert Projector(8, [6, 4]).compute_output_shape((None, 7, 7, 5)) == (None, 6, 4, 8)
