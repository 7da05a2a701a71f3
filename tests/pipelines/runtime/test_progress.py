"""What a person sees while a stage works, on a terminal and in a log."""

import io
import re

import pytest
import ray
from rich.console import Console
from rich.table import Table

from pipelines.runtime import progress
from pipelines.runtime.mailbox import create_mailbox
from pipelines.runtime.progress import ProgressDisplay


class Clock:
    """Time as the test says it is."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_a_log_gets_a_line_now_and_then_with_the_time_left_and_one_at_the_end(clock: Clock) -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=40), "measuring", 40) as display:
        for done in range(1, 41):
            clock.now = 10.0 * done
            display.update(done, "3 images/s")
            display.update(done, "3 images/s")  # nothing new: not printed again
    lines = out.getvalue().splitlines()
    assert lines[0] == "measuring 2/40  3 images/s  6 min left"  # 38 more of 10 s
    assert lines[1] == "measuring 4/40  3 images/s  6 min left"
    assert lines[-1] == "measuring 40/40  3 images/s"
    assert len(lines) == 20


def test_while_an_item_takes_long_the_time_left_shrinks_and_then_is_not_promised(
    clock: Clock,
) -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, width=40), "measuring", 4)
    for clock.now in (20.0, 40.0, 60.0, 81.0):  # three more of 20 s would end at 80
        display.update(1)
    assert out.getvalue().splitlines() == [
        "measuring 1/4  60 s left",
        "measuring 1/4  40 s left",
        "measuring 1/4  20 s left",
        "measuring 1/4",
    ]


def test_who_knows_the_time_left_better_is_believed(clock: Clock) -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out), "step", 100)
    clock.now = 20.0
    display.update(80, left_s=7.0)  # a resumed run: 80 steps were not made in 20 s
    assert out.getvalue() == "step 80/100  7 s left\n"


def test_nothing_is_promised_before_anything_is_done(clock: Clock) -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out), "measuring", 5)
    clock.now = 20.0
    display.update(0)
    assert out.getvalue() == "measuring 0/5\n"


def test_where_nobody_knows_the_total_the_count_is_shown(clock: Clock) -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out), "listing", None)
    clock.now = 20.0
    display.update(123_456, "812.0 MB")
    assert out.getvalue() == "listing 123,456  812.0 MB\n"
    drawn = io.StringIO()
    display = ProgressDisplay(Console(file=drawn, force_terminal=True, width=100), "listing", None)
    display.update(123_456, "812.0 MB")
    display.close()
    assert "123,456" in drawn.getvalue() and "left" not in drawn.getvalue()


def test_a_terminal_gets_a_bar(clock: Clock) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with ProgressDisplay(console, "reading images", 4) as display:
        assert "reading images" in out.getvalue() and "0/4" in out.getvalue()
        clock.now = 30.0
        display.update(1, "812 images/s")
    last = out.getvalue()
    assert "reading images" in last and "1/4" in last and "812 images/s" in last
    assert "90 s left" in last


def test_what_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "/data/[/x] [red] :cat:"
    console = progress.plain_console(soft_wrap=True)
    console.print(odd)
    table = Table(title=odd)
    table.add_column(odd)
    table.add_row(odd)
    console.print(table)
    assert capsys.readouterr().err.count(odd) == 4
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=120)
    with ProgressDisplay(terminal, "reading [/x]", 4) as display:
        display.update(1, odd)
    assert odd in out.getvalue() and "reading [/x]" in out.getvalue()


def test_steps_that_a_lost_worker_made_twice_do_not_pass_the_end(clock: Clock) -> None:
    out = io.StringIO()
    ProgressDisplay(Console(file=out), "step", 100).update(130)
    assert out.getvalue() == "step 100/100\n"


def test_a_mailbox_gives_every_message_once_in_order(ray_cluster: None) -> None:
    box = create_mailbox()
    for number in range(3):
        box.post.remote({"steps": number})
    assert ray.get(box.drain.remote()) == [{"steps": 0}, {"steps": 1}, {"steps": 2}]
    assert ray.get(box.drain.remote()) == []
    ray.kill(box)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (3570, "60 min"), (11100, "3 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(("width", "steps"), [(80, 400), (80, 100_000), (120, 100_000)])
def test_a_bar_fits_the_terminal_and_says_everything(width: int, steps: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    text = "rec 0.1234  joint 0.1234  D 0.1234"
    with ProgressDisplay(console, "step", steps) as display:
        display.update(20, text, left_s=720)
    frames = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", out.getvalue())
    assert max(map(len, frames)) <= width
    last = next(frame for frame in reversed(frames) if "20/" in frame)
    for word in (*text.split(), f"20/{steps}", "12 min left"):
        assert word in last
