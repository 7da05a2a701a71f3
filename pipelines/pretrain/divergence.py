"""When the weights themselves are at fault: update after update is not finite."""

from typing import Any

SKIPPED_IN_A_ROW = 10  # updates that could not be applied
MAX_ROLLBACKS = 3


class DivergenceWatch:
    """Counts the updates that were left out in a row, across the points of the curves.

    Attributes:
        in_a_row: updates left out since the last one that was applied.
        rollbacks: how often the run has gone back to a checkpoint.
    """

    def __init__(self, steps: int, searched: int = 0) -> None:
        """A run shorter than the limit diverges when all its updates are left out.

        Args:
            steps: of the run.
            searched: updates in a row that a search for a loss scale may leave out before.
        """
        self._limit = min(SKIPPED_IN_A_ROW + searched, steps)
        self.in_a_row = 0
        self.rollbacks = 0
        self._moved = True  # whether an update was applied since the last time it went back

    def diverged_after(self, skipped: list[bool]) -> int | None:
        """Most updates left out in a row when they reach the limit; None while they do not.

        Args:
            skipped: of each step since the last call, whether its update was left out.
        """
        longest = 0
        for skip in skipped:
            self.in_a_row = self.in_a_row + 1 if skip else 0
            self._moved = self._moved or not skip
            longest = max(longest, self.in_a_row)
        return longest if longest >= self._limit else None

    def may_roll_back(self) -> bool:
        """Whether going back may help: not too often, and not twice to the same weights."""
        return self._moved and self.rollbacks < MAX_ROLLBACKS

    def rolled_back(self) -> None:
        """Begin to count anew."""
        self.rollbacks += 1
        self.in_a_row = 0
        self._moved = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run goes back where an unbroken one does."""
        return {"in_a_row": self.in_a_row, "rollbacks": self.rollbacks, "moved": self._moved}

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from `state`; a checkpoint of an earlier version has none."""
        self.in_a_row = state.get("in_a_row", 0)
        self.rollbacks = state.get("rollbacks", 0)
        self._moved = state.get("moved", True)
