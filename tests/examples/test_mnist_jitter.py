"""Jittered copies keep what a digit is, and batches keep images with their labels."""

import numpy as np

from examples import mnist_jitter


def blobs(num_items):
    """Images of a soft round spot in the middle."""
    down, right = np.mgrid[:28, :28] - 13.5
    spot = (255 * np.exp(-(down**2 + right**2) / 18)).astype("uint8")
    return np.tile(spot[None, :, :, None], (num_items, 1, 1, 1))


def test_deformed_images_are_moved_by_pixels_and_not_by_more_and_no_two_alike():
    moved = mnist_jitter.deform(blobs(200), np.random.default_rng(0))
    assert (moved.shape, moved.dtype) == ((200, 28, 28, 1), np.dtype("uint8"))
    mass = moved[..., 0].astype(float)
    total = mass.sum(axis=(1, 2))
    rows = (mass.sum(axis=2) * np.arange(28)).sum(axis=1) / total - 13.5
    columns = (mass.sum(axis=1) * np.arange(28)).sum(axis=1) / total - 13.5
    assert np.abs([rows, columns]).max() < 4.0
    assert 0.3 < rows.std() < 1.5
    assert 0.3 < columns.std() < 1.5
    assert len(np.unique(moved.reshape(200, -1), axis=0)) == 200
    # Stretched and bent either way, a spot keeps about its ink.
    ratios = total / float(blobs(1).sum())
    assert 0.9 < ratios.mean() < 1.1
    assert 0.5 < ratios.min() < ratios.max() < 2.0


def test_first_copy_is_the_images_themselves_and_copies_follow_from_the_seed():
    images = blobs(3)
    one, two = ([copy.copy() for copy in mnist_jitter.jittered_copies(images, 3, seed=5)] for _ in range(2))
    np.testing.assert_array_equal(one[0], images)
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one[1], one[2])


def test_training_batches_bring_every_item_once_an_epoch_with_its_own_label():
    labels = np.arange(12, dtype="int32")
    copies = np.zeros((3, 12, 28, 28, 1), "uint8")
    # The centre says which item, a pixel beside it which copy; moves are of one pixel at most.
    copies[:, :, 10:18, 10:18] = (10 * labels + 5)[None, :, None, None, None]
    copies[:, :, 20:24, 20:24] = np.arange(1, 4)[:, None, None, None, None]
    seen, seen_copies = [], set()
    for images, batch_labels in mnist_jitter.training_batches(copies, labels, batch_size=4, epochs=2, seed=0):
        np.testing.assert_array_equal(images[:, 14, 14, 0], 10 * batch_labels.numpy() + 5)
        seen += batch_labels.numpy().tolist()
        seen_copies |= set(images.numpy()[:, 21:23, 21:23, 0].ravel().tolist())
    assert sorted(seen[:12]) == sorted(seen[12:]) == labels.tolist()
    assert seen[:12] != seen[12:]
    assert seen_copies == {1, 2, 3}
