"""What the model has cost, and that it never costs more than allowed.

Money is counted in decimals: a budget is a promise. It must not know questions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal

from kubebooth_api.v1alpha1.session_status import VisionUsage
from kubebooth_api.v1alpha1.vision import Budget

from kubebooth_trainer.errors import ConfigurationError


@dataclass(frozen=True)
class Usage:
    """Tokens and answered requests."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


class BudgetSpent(ConfigurationError):
    """The next call could cost more than is left. What was answered is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BudgetSpent")


class Spending:
    """Counts what calls cost and holds them to a budget. Thread-safe.

    A call reserves its worst case before it starts, so that calls side by side cannot overdraw.
    """

    def __init__(
        self, budget: Budget | None, *, spent: Usage, on_change: Callable[[Usage], None]
    ) -> None:
        self._budget = budget or Budget()
        self._spent, self._on_change = spent, on_change
        self._reserved = Usage()
        self._lock = threading.Lock()

    @property
    def spent(self) -> Usage:
        """All that was paid, in earlier lives of the worker too."""
        with self._lock:
            return self._spent

    def cost(self, usage: Usage) -> Decimal:
        """Money that tokens cost by the price table."""
        prompt = Decimal(self._budget.price_per_prompt_token) * usage.prompt_tokens
        return prompt + Decimal(self._budget.price_per_completion_token) * usage.completion_tokens

    def told(self) -> VisionUsage:
        """What was paid, as status tells it."""
        spent = self.spent
        cost = self.cost(spent)
        return VisionUsage(
            calls=spent.calls,
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            cost=f"{cost.normalize():f}" if cost else None,
        )

    def check(self, expected: Usage) -> None:
        """Raise `BudgetSpent` before the first call when all of them cannot fit."""
        self._refuse(self._spent + expected, expected, "the whole dataset is expected to take")

    def reserve(self, worst: Usage) -> None:
        """Set the worst case of a call aside. Raises `BudgetSpent`."""
        with self._lock:
            self._refuse(self._spent + self._reserved + worst, worst, "the next call may take")
            self._reserved += worst

    def settle(self, worst: Usage, paid: Usage) -> None:
        """Replace what was set aside by what was paid."""
        with self._lock:
            self._reserved = Usage(
                self._reserved.calls - worst.calls,
                self._reserved.prompt_tokens - worst.prompt_tokens,
                self._reserved.completion_tokens - worst.completion_tokens,
            )
            if paid != Usage():
                self._spent += paid
                self._on_change(self._spent)

    def _refuse(self, total: Usage, asked: Usage, what: str) -> None:
        budget = self._budget
        tokens = total.prompt_tokens + total.completion_tokens
        if budget.max_tokens is not None and tokens > budget.max_tokens:
            more = asked.prompt_tokens + asked.completion_tokens
            raise BudgetSpent(
                f"{what} {more} tokens and {self._tokens()} of {budget.max_tokens} are spent; raise"
                " captions.model.budget.maxTokens, or ask less"
            )
        if budget.max_cost is not None and self.cost(total) > Decimal(budget.max_cost):
            raise BudgetSpent(
                f"{what} {self.cost(asked):f} and {self.cost(self._spent):f} of {budget.max_cost}"
                " are spent; raise captions.model.budget.maxCost, or ask less"
            )

    def _tokens(self) -> int:
        return self._spent.prompt_tokens + self._spent.completion_tokens


def worst_case(*, prompt_tokens: int, max_tokens: int) -> Usage:
    """What a call may cost at most, by an estimate with room: servers count pictures in their own
    ways."""
    return replace(Usage(1), prompt_tokens=2 * prompt_tokens, completion_tokens=max_tokens)
