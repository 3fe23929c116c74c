"""The judges of a recipe: started before the first step that judges, ended after the last."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ..recipe import Recipe
from ..recipe.judges import JudgeSettings, judge_variable, tokens_variable
from ..rollout.generation import check_port, free_port
from ..rollout.server import RolloutServer
from .models import hub_or_local
from .steps import Step, model_path


def announce(recipe: Recipe) -> None:
    """Say in this process's environment, which those of steps inherit, where each judge will be.

    Before any is started: a plan already builds the verifiers that ask them.
    """
    for name, judge in recipe.judges.items():
        host = judge.server.host
        if judge_variable(name) not in os.environ:
            os.environ[judge_variable(name)] = f"http://{host}:{judge.server.port or free_port(host)}/v1"
        if judge.kind == "reward":
            # A reward stage's model was trained on the very tokens that the policy samples; another may have other ones.
            tokens = "sampled" if name in recipe.judge_stages() else "text"
            os.environ.setdefault(tokens_variable(name), tokens)


class Judges:
    """Servers of the recipe's judges."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.servers: dict[str, RolloutServer] = {}

    def start(self, steps: Mapping[str, Step]) -> None:
        """Begin to start those that do not run; returns at once. One whose model a reward stage makes is left for later
        until that is done. Raises TuluLiteError as RolloutServer.start."""
        made = self.recipe.judge_stages()
        for name, judge in self.recipe.judges.items():
            if name in self.servers or (name in made and not steps[made[name]].done):
                continue
            folder = (
                Path(model_path(dict(steps), self.recipe, made[name]))
                if name in made
                else hub_or_local(judge.model, judge.revision)
            )
            self.servers[name] = self._server(name, judge, folder)
            self.servers[name].start()

    def _server(self, name: str, judge: JudgeSettings, model: Path) -> RolloutServer:
        """Where it was announced, also when it is started anew."""
        settings = judge.server
        port = urlsplit(os.environ[judge_variable(name)]).port
        assert port is not None
        check_port(settings.host, port)
        settings = settings.model_copy(
            update={
                "port": port,
                "max_loras": 0,
                "engine_args": {
                    "served_model_name": name,
                    **({"runner": "pooling"} if judge.kind == "reward" else {}),
                    **settings.engine_args,
                },
            }
        )
        folder = Path(self.recipe.output) / "judges" / name
        return RolloutServer(settings, model, folder, folder / "log.txt")

    def wait_ready(self) -> None:
        """Block until all answer. Raises ServerError."""
        for server in self.servers.values():
            server.wait_ready()

    def state_text(self) -> str:
        """What is wrong with one of them, for a display; empty while all are ready."""
        troubled = [
            f"judge {name} {server.state_text()}"
            for name, server in self.servers.items()
            if server.state.state != "ready"
        ]
        return "; ".join(troubled)

    def stop(self) -> None:
        for server in self.servers.values():
            server.stop()
        self.servers = {}
