"""vLLM's kernels for norms and SwiGLU on a CPU compute what the models' own code does, and only where they may."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ASK = """
import json
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.platforms import current_platform

current_platform.import_kernels()
from tulu_lite.rollout import layer_kernels

called = []
for name in ("rms_norm", "add_rms_norm", "silu_and_mul"):
    def watched(*args, _theirs=getattr(layer_kernels, name), _name=name):
        called.append(_name)
        return _theirs(*args)
    setattr(layer_kernels, name, watched)
layer_kernels.use_them()
torch.manual_seed(0)
found = []


def far(found, wanted):
    return (found.double() - wanted.double()).abs().max().item()


def normed(x, weight, epsilon=1e-5):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()


class Other(RMSNorm):
    pass


with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=0, custom_ops=["all"]))):  # an eager engine
    for kind, hidden, dtype in (
        ("usual", 160, torch.float32), ("usual", 416, torch.float32), ("odd", 40, torch.float32), ("half", 160, torch.bfloat16),
        ("other", 160, torch.float32), ("bare", 160, torch.float32), ("part", 160, torch.float32),
    ):
        torch.set_default_dtype(dtype)
        norm = (Other if kind == "other" else RMSNorm)(
            hidden, eps=1e-5, has_weight=kind != "bare", var_hidden_size=80 if kind == "part" else None
        )
        weight = torch.rand(hidden)
        if kind != "bare":
            norm.weight.data.copy_(weight)
        for rows in (1, 7, 96):
            called.clear()
            x, residual = torch.randn(rows, hidden), torch.randn(rows, hidden)
            kept = x.clone()
            single = norm(x)
            assert torch.equal(x, kept)
            total = x + residual
            double, added = norm(x.clone(), residual.clone())
            gaps = None
            if kind != "part":
                factor = weight if kind != "bare" else torch.ones(hidden)
                gaps = max(far(single, normed(kept, factor)), far(double, normed(total, factor)), far(added, total))
            found.append({"what": kind, "gap": gaps, "called": sorted(set(called))})
    torch.set_default_dtype(torch.float32)
    act = SiluAndMul()
    for half, dtype in ((416, torch.float32), (24, torch.float32), (416, torch.bfloat16)):
        called.clear()
        x = torch.randn(33, 2 * half, dtype=dtype)
        wanted = torch.nn.functional.silu(x[:, :half].double()) * x[:, half:].double()
        found.append({"what": f"silu {half} {dtype}", "gap": far(act(x), wanted), "called": list(called)})
    called.clear()
    wide = torch.randn(33, 1000)[:, :832]  # rows that do not lie one after the other
    wanted = torch.nn.functional.silu(wide[:, :416].double()) * wide[:, 416:].double()
    found.append({"what": "silu apart", "gap": far(act(wide), wanted), "called": list(called)})
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> list[dict]:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=300)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")] or [done.stderr[-3000:]]
    return json.loads(line.removeprefix("FOUND "))


def test_what_the_kernels_serve_is_what_torch_computes(found: list[dict]) -> None:
    served = [one for one in found if one["what"] == "usual"]
    assert len(served) == 6
    assert all(one["called"] == ["add_rms_norm", "rms_norm"] for one in served)
    assert all(one["gap"] < 3e-6 for one in served)
    [silu] = [one for one in found if one["what"] == "silu 416 torch.float32"]
    assert silu["called"] == ["silu_and_mul"] and silu["gap"] < 3e-6


def test_what_they_do_not_serve_goes_vllms_way(found: list[dict]) -> None:
    others = [one for one in found if one["what"] in ("odd", "half", "other", "bare", "part")]
    assert len(others) == 15 and not any(one["called"] for one in others)
    apart = [
        one for one in found if one["what"].startswith("silu") and one["what"] != "silu 416 torch.float32"
    ]
    assert len(apart) == 3 and not any(one["called"] for one in apart)
    exact = [
        one for one in others + apart if one["what"] not in ("half", "part") and "bfloat16" not in one["what"]
    ]
    assert all(one["gap"] < 3e-6 for one in exact)
