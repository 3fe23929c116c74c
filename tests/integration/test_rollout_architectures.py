"""Each architecture is served and updated: greedy tokens and log-probabilities equal transformers' after every push."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tulu_lite.errors import ServerError, TuluLiteError
from tulu_lite.rollout import weights
from tulu_lite.rollout.weights import push_weights

sys.path.insert(0, str(Path(__file__).parent))
from architectures import CONFIGS, change, checkpoint_weights, disagreements, make_model


@pytest.fixture(scope="module", autouse=True)
def _the_shared_server_as_it_was(rollout_server, tiny_dir):
    yield
    rollout_server.serve_model(tiny_dir, 0)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_three_pushes_are_held_and_sampled_from(client, rollout_server, tmp_path, architecture):
    model = make_model(architecture, tmp_path / "model")
    rollout_server.serve_model(tmp_path / "model", 0)
    generation = rollout_server.state.generation
    for version in range(4):
        if version:
            model = change(model, version)
            report = push_weights(client, checkpoint_weights(model), version)
            assert report.unchecked == ()
            assert report.checked >= 15
        wrong, apart = disagreements(client, model, version)
        assert wrong == []
        assert apart < 1e-4
    assert rollout_server.state.generation == generation
    if architecture == "olmoe":
        _check_experts(client, rollout_server, model)


def _check_experts(client, rollout_server, model):
    """A push without one expert's projection is refused by name and, where names are not looked at, by the server."""
    lost = "model.layers.1.mlp.experts.5.up_proj.weight"
    partial = [(name, tensor) for name, tensor in checkpoint_weights(change(model, 9)) if name != lost]
    with pytest.raises(TuluLiteError, match=f"weights are missing: {lost}"):
        push_weights(client, partial, 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_check_names", lambda *_: None)
        with pytest.raises(ServerError, match=r"hold something else.*layers\.1\.mlp\.experts\.\S*w13_weight"):
            push_weights(client, partial, 9)
    client.wait_ready()
    assert disagreements(client, model, 3) == ([], pytest.approx(0, abs=1e-4))
