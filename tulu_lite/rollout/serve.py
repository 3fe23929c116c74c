"""A rollout server by hand: `serve` blocks until it is interrupted (`status.py` says how one does)."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from ..files import write_atomic
from ..recipe import Recipe
from ..recipe.server import ServerSettings
from .fleet import open_servers
from .status import how_to_ask

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(model_dir: Path, settings: ServerSettings, run_dir: Path, *, recipe: Recipe | None = None) -> None:
    """Serve a model until SIGINT, SIGTERM or SIGHUP; prints its URL and every change of its state.

    recipe: whose chat template conversations are rendered by; by default the model's own. Call it in the main thread.
    Raises TuluLiteError when the server cannot start or fails for good.
    """
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in _ENDINGS}
    if recipe is not None:
        settings = with_template(settings, recipe, run_dir)
    server = open_servers(settings, model_dir, Path(run_dir), Path(run_dir) / "log.txt")
    try:
        server.start()
        print(f"the rollout server starts on {model_dir}; its log is {server.log}", flush=True)
        shown, asked = "", False
        while not stop.wait(0.2):
            state = server.state
            text = f"{server.state_text()}, {state.url}" if state.state == "ready" else server.state_text()
            if text != shown:
                print(text, flush=True)
                if state.state == "ready" and not asked:
                    print("\n".join(f"  {command}" for command in how_to_ask(state)), flush=True)
                    asked = True
                shown = text
            if state.state in ("failed", "stopped"):
                server.wait_ready(0.0)  # raises what it failed of
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    print(server.state_text(), flush=True)


def with_template(settings: ServerSettings, recipe: Recipe, run_dir: Path) -> ServerSettings:
    """The settings with the recipe's chat template for those who send conversations instead of token ids.

    A recipe that says nothing else has the server use the model's own.
    """
    if recipe.chat_template == "model" or "chat_template" in settings.engine_args:
        return settings
    from ..datasets.chat import ChatTemplate, load_tokenizer

    template = ChatTemplate.load(
        recipe.chat_template, load_tokenizer(recipe.model, recipe.revision), recipe.model
    )
    file = Path(run_dir).resolve() / "chat_template.jinja"
    write_atomic(file, template.source)
    return settings.model_copy(update={"engine_args": {"chat_template": str(file), **settings.engine_args}})
