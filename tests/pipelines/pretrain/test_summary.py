"""The closing words of a training."""

from pipelines.pretrain.summary import shortfalls


def test_a_training_below_what_needs_none_is_told_so() -> None:
    good = {"psnr_hole": 20.0, "psnr_visible_mean": 15.0, "psnr_untrained": 12.0}
    assert shortfalls(good) == []
    (mean,) = shortfalls({**good, "psnr_hole": 14.0})
    assert "mean colour of each image (15.00 dB)" in mean
    (start,) = shortfalls({**good, "psnr_untrained": 21.0})
    assert "untrained network (21.00 dB)" in start
    assert len(shortfalls({**good, "psnr_hole": 11.0})) == 2


def test_what_an_earlier_version_did_not_measure_is_not_judged() -> None:
    assert shortfalls({"psnr_hole": 9.0, "psnr_mean_fill": 12.0}) == []
    assert shortfalls({"target_error": 0.5}) == []
