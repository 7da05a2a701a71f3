"""When the weights themselves are at fault: update after update is not finite."""

SKIPPED_IN_A_ROW = 10  # updates that could not be applied


class DivergenceWatch:
    """Counts the updates that were left out in a row, across the points of the curves."""

    def __init__(self, steps: int) -> None:
        """A run shorter than SKIPPED_IN_A_ROW diverges when all its updates are left out."""
        self._limit = min(SKIPPED_IN_A_ROW, steps)
        self._in_a_row = 0

    def diverged_after(self, skipped: list[bool]) -> int | None:
        """Most updates left out in a row when they reach the limit; None while they do not.

        Args:
            skipped: of each step since the last call, whether its update was left out.
        """
        longest = 0
        for skip in skipped:
            self._in_a_row = self._in_a_row + 1 if skip else 0
            longest = max(longest, self._in_a_row)
        return longest if longest >= self._limit else None
