"""One of the processes of test_pair_ranks.py: the stages of kind dpo and reward of a recipe, one after the other."""

from __future__ import annotations

import sys

from ranks import leave

from tulu_lite.recipe import DpoStage, RewardStage
from tulu_lite.stages import dpo, reward
from tulu_lite.stages.context import step_context

if __name__ == "__main__":
    for stage, train in ((DpoStage, dpo.train), (RewardStage, reward.train)):
        name = stage.model_fields["kind"].annotation.__args__[0]  # type: ignore[union-attr]
        with step_context(stage, ["--recipe", sys.argv[1], "--stage", name]) as ctx:
            train(ctx)
    leave()
