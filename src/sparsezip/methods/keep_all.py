"""keep_all: every patch, unchanged; the uncompressed model as one of the methods.

Paper: none.
Code: none.
Parity: bit-identical to the tower's own patches.
Differs: nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import BudgetError
from .base import Method


@dataclass(frozen=True, kw_only=True)
class KeepAll(Method):
    """Send every patch. Raises BudgetError for a budget below the number of patches."""

    name: ClassVar[str] = "keep_all"
    takes_budget: ClassVar[bool] = False

    def tokens(self, patches: int) -> int:
        """All of them."""
        return patches

    def check(self, patches: int) -> None:
        """Raise BudgetError for a budget that keeping everything would break."""
        asked = self.asked(patches)
        if asked is not None and asked < patches:
            raise BudgetError(f"KeepAll sends all {patches} patches, more than the budget of {asked}. Give no budget.")

    def sends_everything(self, patches: int) -> bool:
        """Always."""
        return True
