"""Scores against hand-worked cases, independent implementations and scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import average_precision_score, jaccard_score
from sklearn.neighbors import KNeighborsClassifier

from ce_model.transfer import metrics
from ce_model.transfer.metrics import Found, Truth

BOX = [10.0, 10.0, 19.0, 19.0]
FAR = [50.0, 50.0, 59.0, 59.0]


def found(*entries: tuple[int, float, list[float]]) -> Found:
    images, values, boxes = zip(*entries, strict=True)
    return Found(np.array(images), np.array(values), np.array(boxes))


def truth(*entries: tuple[int, list[float], bool]) -> Truth:
    images, boxes, difficult = zip(*entries, strict=True)
    return Truth(np.array(images), np.array(boxes), np.array(difficult))


def test_a_second_find_of_one_object_is_a_miss() -> None:
    # ranks: hit (1/2), duplicate, hit (2/2) -> precision 1, 1/2, 2/3
    got = found((0, 0.9, BOX), (0, 0.8, BOX), (1, 0.7, FAR))
    want = truth((0, BOX, False), (1, FAR, False))
    recall, precision = metrics.detection_curve(got, want)
    assert recall.tolist() == [0.5, 0.5, 1.0]
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3])
    # all points: 0.5 * 1 + 0.5 * 2/3; 11 points: 0 to 0.5 give 1, 0.6 to 1 give 2/3
    assert metrics.detection_ap(got, want, "all_points") == pytest.approx(5 / 6)
    assert metrics.detection_ap(got, want, "11_points") == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_difficult_object_is_neither_required_nor_punished() -> None:
    want = truth((0, BOX, True), (1, FAR, False))
    got = found((0, 0.9, BOX), (1, 0.8, FAR))
    assert metrics.detection_ap(got, want, "all_points") == 1.0
    only_difficult = truth((0, BOX, True))
    assert np.isnan(metrics.detection_ap(got, only_difficult, "all_points"))


def test_an_overlap_of_exactly_one_half_is_a_hit() -> None:
    # 10 x 10 against 10 x 20 px that contain it: 100 / 200
    tall = [10.0, 10.0, 19.0, 29.0]
    assert metrics.box_iou(np.array(BOX), np.array([tall]))[0] == 0.5
    assert metrics.detection_ap(found((0, 1.0, tall)), truth((0, BOX, False)), "all_points") == 1.0


def test_a_find_in_another_image_is_a_miss() -> None:
    assert metrics.detection_ap(found((1, 1.0, BOX)), truth((0, BOX, False)), "11_points") == 0.0


def devkit_ap(got: Found, want: Truth, rule: str) -> float:
    """VOCevaldet and VOCap written down line by line, without arrays."""
    required = sum(not d for d in want.difficult)
    taken: set[int] = set()
    points = []
    hits = misses = 0
    for at in sorted(range(len(got.score)), key=lambda i: -got.score[i]):
        best, best_iou = -1, -1.0
        for number in range(len(want.image)):
            if want.image[number] != got.image[at]:
                continue
            a, b = got.box[at], want.box[number]
            width = min(a[2], b[2]) - max(a[0], b[0]) + 1
            height = min(a[3], b[3]) - max(a[1], b[1]) + 1
            if width <= 0 or height <= 0:
                continue
            shared = width * height
            total = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
            if shared / (total - shared) > best_iou:
                best, best_iou = number, shared / (total - shared)
        if best_iou >= 0.5:
            if not want.difficult[best]:
                if best in taken:
                    misses += 1
                else:
                    taken.add(best)
                    hits += 1
        else:
            misses += 1
        points.append((hits / required, hits / max(hits + misses, 1)))
    if rule == "11_points":
        levels = [t / 10 for t in range(11)]
        return sum(max([p for r, p in points if r >= t - 1e-9], default=0) for t in levels) / 11
    area, reached = 0.0, 0.0
    for recall, _ in points:
        area += (recall - reached) * max(p for r, p in points if r >= recall)
        reached = recall
    return area


@pytest.mark.parametrize("rule", ["11_points", "all_points"])
@pytest.mark.parametrize("seed", range(8))
def test_detection_ap_equals_a_plain_devkit(seed: int, rule: metrics.Rule) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 40, (30, 2))
    true_box = np.hstack([corner, corner + rng.integers(5, 30, (30, 2))]).astype(float)
    want = Truth(rng.integers(0, 6, 30), true_box, rng.random(30) < 0.2)
    near = true_box[rng.integers(0, 30, 80)] + rng.integers(-4, 5, (80, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
    got = Found(rng.integers(0, 6, 80), rng.permutation(80) / 80, near)
    assert metrics.detection_ap(got, want, rule) == pytest.approx(devkit_ap(got, want, rule))


@pytest.mark.parametrize("seed", range(5))
def test_ranking_ap_equals_scikit_learn_also_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 10, 200) / 10
    positive = rng.random(200) < 0.3
    counted = rng.random(200) < 0.8
    expected = average_precision_score(positive[counted], values[counted])
    assert metrics.ranking_ap(values, positive, counted) == pytest.approx(expected)


def test_mean_iou_by_hand_leaves_out_void_and_absent_classes() -> None:
    want = np.array([[0, 0, 1], [1, 255, 255]], np.uint8)
    got = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)
    result = metrics.overlap(metrics.confusion(want, got, 3))
    np.testing.assert_allclose(result.iou, [1 / 2, 2 / 3, np.nan])
    assert result.mean_iou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result.pixel_accuracy == pytest.approx(3 / 4)


def test_mean_iou_equals_the_jaccard_score_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    want = rng.integers(0, 5, (40, 50)).astype(np.uint8)
    got = np.where(rng.random((40, 50)) < 0.6, want, rng.integers(0, 5, (40, 50))).astype(np.uint8)
    expected = jaccard_score(want.ravel(), got.ravel(), average="macro")
    assert metrics.overlap(metrics.confusion(want, got, 5)).mean_iou == pytest.approx(expected)


def test_a_split_of_void_has_no_mean_iou() -> None:
    void = np.full((4, 4), 255, np.uint8)
    assert np.isnan(metrics.overlap(metrics.confusion(void, void * 0, 3)).mean_iou)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_neighbour_vote_equals_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(k)
    database, queries = rng.normal(size=(150, 8)), rng.normal(size=(60, 8))
    labels = rng.integers(0, 4, 150)
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(database, labels)
    ours = metrics.neighbour_vote(queries, database, labels, k)
    np.testing.assert_array_equal(ours, model.predict(queries))


@pytest.mark.parametrize(("rows", "columns"), [(60, 10), (20, 50)])
def test_ridge_equals_scikit_learn_in_both_forms(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, columns)) + 3, rng.normal(size=(rows, 4))
    penalties = [0.1, 10.0]
    for penalty, ours in zip(penalties, metrics.ridge(x, y, penalties), strict=True):
        theirs = SklearnRidge(alpha=penalty).fit(x, y)
        np.testing.assert_allclose(ours(x), theirs.predict(x), atol=1e-8)
        np.testing.assert_allclose(ours.weight, theirs.coef_.T, atol=1e-8)
