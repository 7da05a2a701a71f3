"""How many training processes there are: one number, or as many as a cluster has room for."""

import re
from typing import NamedTuple

from pipelines.errors import UserError


class Workers(NamedTuple):
    """The fewest and the most; the same number twice where it is fixed."""

    fewest: int
    most: int

    @classmethod
    def parse(cls, given: int | str) -> "Workers":
        """From a number or MIN:MAX.

        Raises:
            UserError: it is neither.
        """
        found = re.fullmatch(r"(\d+)(?::(\d+))?", str(given))
        fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= fewest <= most:
            raise UserError(
                f"num_workers is {given}; it must be 1 or more, or a range that rises, as 1:4"
            )
        return cls(fewest, most)

    @property
    def is_elastic(self) -> bool:
        """Whether the number follows the cluster."""
        return self.fewest < self.most

    def sizes(self, batch_size: int) -> list[int]:
        """The numbers of workers that share a batch out equally, rising."""
        return [n for n in range(self.fewest, self.most + 1) if batch_size % n == 0]
