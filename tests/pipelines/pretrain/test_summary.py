"""The closing words of a training."""

from pipelines.pretrain.summary import _describe_memory, shortfalls


def judged(measured: dict[str, float], adversarial: float = 0.0, **more: str) -> list[str]:
    summary = {"validation": measured, "adversarial": adversarial, "preset": "unet"}
    return shortfalls(summary | more)


def test_a_training_below_what_needs_none_is_told_so() -> None:
    good = {"psnr_hole": 20.0, "psnr_visible_mean": 15.0, "psnr_untrained": 12.0}
    assert judged(good) == []
    (mean,) = judged({**good, "psnr_hole": 14.0})
    assert "mean colour of each image (15.00 dB)" in mean
    (start,) = judged({**good, "psnr_untrained": 20.4})
    assert "warning" in start and "smooth start (20.40 dB)" in start
    for other in ({"preset": "inpaint"}, {"start": "colour"}):
        (start,) = judged({**good, "psnr_untrained": 20.4}, **other)
        assert "untrained network (20.40 dB)" in start
    assert len(judged({**good, "psnr_hole": 11.0})) == 2


def test_what_a_joint_loss_costs_is_told_and_no_warning() -> None:
    (cost,) = judged({"psnr_hole": 20.0, "psnr_untrained": 20.4}, 0.01)
    assert cost.startswith("0.40 dB below the smooth start")
    (start,) = judged({"psnr_hole": 20.0, "psnr_untrained": 20.6}, 0.01)
    assert start.startswith("warning")


def test_what_an_earlier_version_did_not_measure_is_not_judged() -> None:
    assert judged({"psnr_hole": 9.0, "psnr_mean_fill": 12.0}) == []
    assert judged({"target_error": 0.5}) == []


def test_a_command_that_trained_nothing_tells_no_memory_of_its_own() -> None:
    peak = {"peak_memory_driver_bytes": 3e9, "peak_memory_ranks_bytes": 2e9}
    assert _describe_memory(peak).startswith("3.0 GB in this process and all below it, 2.0 GB in")
    ended = {**peak, "peak_memory_driver_bytes": 0}
    assert _describe_memory(ended) == "2.0 GB in the training processes of all nodes"
