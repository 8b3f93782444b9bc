"""Find out early what a plan cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.manager import State
from onnxprune.passes.make_plan import Planning
from onnxprune.planning.plan import Limits
from onnxprune.planning.scores import Scores


@dataclass(frozen=True)
class CheckPlan(Planning):
    """Refuse names that fit nothing and budgets that no plan meets, before damage is measured."""

    name: ClassVar[str] = "check-plan"
    gives: ClassVar[type] = Limits

    def run(self, state: State) -> Limits:
        planner = self.planner(state, state[Scores], None)
        planner.ready()
        return planner.limits
