"""Figures: what is drawn is what was measured, and nothing is left behind in Matplotlib."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from keras_distill.report import drawing, metrics, plots

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bars(svg):
    """Heights of the bars, in drawing units, by colour, in order of drawing."""
    found = []
    for node in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        style, points = node.get("style", ""), re.findall(r"[ML] ([\d.]+) ([\d.]+)", node.get("d", ""))
        colour = re.search(r"fill: (#[0-9a-f]{6})", style)
        if colour and colour[1] in drawing.COLOURS and len(points) == 4 and node.get("clip-path"):
            heights = [float(y) for _, y in points]
            found.append((colour[1], max(heights) - min(heights)))
    return found


def test_temperature_picture_draws_the_softened_probabilities():
    logits = np.array([[4.0, 2.0, 0.0]])
    images = np.random.default_rng(0).random((1, 4, 4, 1))
    svg = plots.temperature_picture(images, logits, [0], ("cat", "dog", "elephant"), (1.0, 5.0))
    drawn = bars(svg)
    expected = np.concatenate([np.exp(logits[0] / t) / np.exp(logits[0] / t).sum() for t in (1.0, 5.0)])
    assert len(drawn) == 6
    heights = np.array([height for _, height in drawn])
    np.testing.assert_allclose(heights / heights[0], expected / expected[0], rtol=1e-3)
    # The label's bar has its own colour, in both columns.
    assert [colour == drawing.COLOURS[0] for colour, _ in drawn] == [True, False, False] * 2
    assert {"label: cat", "T = 1", "T = 5", "ele…"} <= set(texts(svg))


def test_temperature_picture_of_an_ensemble_is_the_mean_at_each_temperature():
    members = np.array([[[6.0, 0.0], [0.0, 6.0]]])
    svg = plots.temperature_picture(np.zeros((1, 4, 4, 1)), members, [0], ("a", "b"), (1.0,))
    heights = [height for _, height in bars(svg)]
    assert heights[0] == pytest.approx(heights[1], rel=1e-6)


@pytest.mark.parametrize("shape", [(5, 5, 3), (5, 7), (9,), (20, 8, 1)])
def test_temperature_picture_takes_inputs_of_any_kind(shape):
    svg = plots.temperature_picture(np.full((2, *shape), 0.5), np.eye(2, 3), [0, 1], ("a", "b", "c"))
    assert len(texts(svg)) > 5


def test_temperature_picture_wants_a_label_for_every_image():
    with pytest.raises(ValueError, match="2 images, 1 rows of logits, 1 labels"):
        plots.temperature_picture(np.zeros((2, 3, 3, 1)), np.zeros((1, 2)), [0], ("a", "b"))


def test_names_are_text_and_neither_markup_nor_mathematics():
    bins = metrics.reliability(np.eye(3), np.arange(3))
    svg = plots.reliability_diagrams({"a <b> & $x_1$": bins, "$\\broken{": bins})
    assert "a <b> & $x_1$" in texts(svg)
    assert "<b>" not in svg


def test_trade_off_orders_points_as_their_figures():
    points = [
        plots.TradeOffPoint("teacher", 500_000, 1.0, 1.0, "Keras"),
        plots.TradeOffPoint("student", 5_000, 0.01, 3.0, "LiteRT"),
    ]
    svg = plots.trade_off(points)
    labels = {
        "".join(node.itertext()): float(node.get("x"))
        for node in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if "".join(node.itertext()) in ("teacher", "student")
    }
    assert labels["student"] < labels["teacher"]
    assert {"Keras", "LiteRT", "test errors (%)", "size (kB)"} <= set(texts(svg))


def titled(svg):
    """Title → the mark that has it."""
    groups = ElementTree.fromstring(svg).iter(f"{SVG}g")
    return {title: group for group in groups if (title := group.findtext(f"{SVG}title"))}


def test_trade_off_tells_each_point_under_the_pointer():
    svg = plots.trade_off([plots.TradeOffPoint("a <b>", 5_000, 0.0123, 3.0, "LiteRT")])
    assert list(titled(svg)) == ["a <b>: 3.00 % errors, 0.0123 ms, 5,000 bytes"]
    assert svg.count("<title>") == 2


@pytest.mark.parametrize("errors", [[0.0, 0.0], [0.0, 3.0], [100.0, 97.0], [0.0, 100.0]])
def test_axes_of_per_cent_end_where_per_cent_do(errors):
    points = [plots.TradeOffPoint(str(i), 1000 * (i + 1), 0.1, error) for i, error in enumerate(errors)]
    candidates = [plots.Candidate(i + 1.0, error, "a", True, str(i)) for i, error in enumerate(errors)]
    lift = [plots.AccuracyPoint(str(i), i + 1.0, error, 0.5) for i, error in enumerate([*errors, 99.9])]
    for svg in (
        plots.trade_off(points),
        plots.front(candidates, "bytes", chosen=0, limit=None, teacher_percent=0.0),
        plots.lift(lift),
    ):
        numbers = [float(text.replace("−", "-")) for text in texts(svg) if re.fullmatch(r"[−\d.]+", text)]
        assert 0.0 <= min(numbers) < max(numbers) <= 100.0


def test_bins_of_fewer_than_ten_examples_are_grey_and_told():
    # 9 examples of confidence 0.6, all wrong; 10 of confidence 0.9, all right.
    confidence = np.array([0.6] * 9 + [0.9] * 10)
    bins = metrics.reliability(np.log(np.stack([confidence, 1 - confidence], axis=1)), [1] * 9 + [0] * 10)
    marks = titled(plots.reliability_diagrams({"student": bins}))
    assert list(marks) == [
        "student: 9 examples, confidence 0.600, accuracy 0.000",
        "student: 10 examples, confidence 0.900, accuracy 1.000",
    ]
    colours = [re.search(r"fill: (#\w+)", next(mark.iter(f"{SVG}use")).get("style"))[1] for mark in marks.values()]
    assert colours == [drawing.GREY, drawing.COLOURS[0]]


def test_reliability_axes_go_from_0_to_1():
    bins = metrics.reliability(np.eye(3) * 9, np.arange(3))
    numbers = [float(text) for text in texts(plots.reliability_diagrams({"a": bins})) if re.fullmatch(r"[\d.]+", text)]
    assert (min(numbers), max(numbers)) == (0.0, 1.0)


def test_no_letter_leaves_a_figure():
    bins = metrics.reliability(np.eye(3) * 9, np.arange(3))
    points = [plots.TradeOffPoint(name, size, 0.01, 3.0, "a") for name, size in (("one", 900), ("two", 90_000))]
    for svg in (plots.reliability_diagrams({"student on labels": bins, "student": bins}), plots.trade_off(points)):
        root = ElementTree.fromstring(svg)
        width, height = (float(value) for value in root.get("viewBox").split()[2:])
        for node in root.iter(f"{SVG}text"):
            # Turned letters are placed by their transform.
            x, y = (float(node.get(axis) or width / 2) for axis in "xy")
            size = float(re.search(r"([\d.]+)px", node.get("style"))[1])
            assert size <= y <= height, "".join(node.itertext())
            assert 0 <= x <= width


def test_figures_beside_each_other_stand_where_they_belong():
    svg = plots.figures_beside({"a": (10.0, 1.0), "b & c": (20.0, 0.0), "d": (30.0, 2.0)}, "errors")
    marks = titled(svg)
    assert list(marks) == ["a: 10 ± 1", "b & c: 20", "d: 30 ± 2"]
    places = np.array([[float(next(mark.iter(f"{SVG}use")).get(axis)) for axis in "xy"] for mark in marks.values()])
    np.testing.assert_allclose(np.diff(places, 2, axis=0), 0.0, atol=1e-4)
    assert np.all(np.diff(places, axis=0) > 0)


def test_the_lift_puts_both_students_at_one_latency():
    points = [
        plots.AccuracyPoint(*each) for each in (("t", 80.0, 99.0, 0.0), ("l", 5.0, 96.0, 0.1), ("d", 5.0, 98.0, 0.1))
    ]
    marks = titled(svg := drawing.on_paper(plots.lift(points)))
    places = [[float(next(mark.iter(f"{SVG}use")).get(axis)) for axis in "xy"] for mark in marks.values()]
    teacher, labels, distilled = places
    assert labels[0] == pytest.approx(distilled[0])
    assert labels[0] < teacher[0]
    # Up is better: 99, 98, 96.
    assert (labels[1] - teacher[1]) == pytest.approx(3 * (distilled[1] - teacher[1]), rel=1e-3)
    assert "background: #ffffff" in svg


def test_labels_of_models_alike_do_not_cover_each_other():
    names = ["student", "onnx", "litert", "litert-int8"]
    svg = plots.trade_off([plots.TradeOffPoint(name, 19_000 + 50 * i, 0.01, 3.0, "a") for i, name in enumerate(names)])
    places = [
        (float(node.get("x")), float(node.get("y")), len(name))
        for node in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if (name := "".join(node.itertext())) in names
    ]
    assert len(places) == 2 * len(names)
    for index, (x, y, length) in enumerate(places):
        for other_x, other_y, other_length in places[:index]:
            # Centred letters of 8 points: about 5 wide, 8 high.
            assert abs(y - other_y) >= 8 or abs(x - other_x) >= 2.5 * (length + other_length)


def test_the_front_is_on_log_scales_and_names_every_candidate():
    made = [(1000, 16.0, "a"), (2000, 8.0, "b"), (4000, 4.0, "a"), (8000, 2.0, "b & c")]
    candidates = [plots.Candidate(x, y, group, y < 5, f"at {x} < 9,000") for x, y, group in made]
    svg = plots.front(candidates, "size (bytes)", chosen=3, limit=9000.0, teacher_percent=1.5)
    root = ElementTree.fromstring(svg)
    points = [next(node for node in root.iter(f"{SVG}g") if node.get("id") == f"candidate-{n}") for n in range(4)]
    assert [point.findtext(f"{SVG}title") for point in points] == [candidate.title for candidate in candidates]
    marks = [next(point.iter(f"{SVG}use")) for point in points]
    places = np.array([(float(mark.get("x")), float(mark.get("y"))) for mark in marks])
    # Each costs twice as much as the one before and has half its errors.
    steps = np.diff(places, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], (3, 2)), rtol=1e-4)
    assert ["fill-opacity: 0" in mark.get("style") or "fill: none" in mark.get("style") for mark in marks] == [
        *[True] * 2,
        *[False] * 2,
    ]
    assert {"1,000", "2,000", "5,000", "2", "5", "10", "b & c", "teacher", "budget"} <= set(texts(svg))


def test_a_front_without_errors_is_drawn_all_the_same():
    candidates = [plots.Candidate(0.002, 0.0, "a", True, "none"), plots.Candidate(0.0021, 4.0, "a", False, "four")]
    svg = plots.front(candidates, "latency (ms)", chosen=0, limit=None, teacher_percent=0.0)
    labels = texts(svg)
    assert "0" in labels
    assert "0.002" in labels
    assert "budget" not in labels


def test_figures_follow_the_pages_colour_and_are_the_same_every_time():
    draw = lambda: plots.curves({"a": ([1, 2], [3, 4])}, "epoch", "errors (%)")  # noqa: E731
    svg = draw()
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "#000000" not in svg.replace("stroke: #000000; stroke-width: 0", "")
    assert svg == draw()


def test_drawing_starts_no_window_system():
    import sys

    plots.curves({"a": ([1, 2], [3, 4])}, "epoch", "errors (%)")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_most_ambiguous_are_right_narrow_and_of_different_classes():
    logits = np.array([[2.0, 1.9, 0.0], [5.0, 0.0, 0.0], [2.0, 1.8, 0.0], [1.0, 1.0001, 0.0], [0.0, 3.0, 2.0]])
    labels = np.array([0, 0, 0, 0, 1])
    # Position 3 is the narrowest but wrong; 0 and 2 share a class, so 4 comes second.
    assert plots.most_ambiguous(logits, labels, 2).tolist() == [0, 4]
