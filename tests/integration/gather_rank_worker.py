"""One of two processes of test_weight_gather.py: spreads a model over both, then writes its whole weights to files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import leave
from transformers import LlamaConfig, LlamaForCausalLM

from tulu_lite.rollout.routes.files import Cast, write_files
from tulu_lite.training.logprobs import LogprobModel
from tulu_lite.training.whole import WholeWeights


def memory(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def spread(model: Any, engine: str) -> Any:
    if engine == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        return LogprobModel(model)
    if engine.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__.clear()  # compile nothing: gloo does what its kernels would do

        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": int(engine[4])},
        }
        wrapped = LogprobModel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        return deepspeed.initialize(model=wrapped, optimizer=optimizer, config=config)[0]
    return torch.nn.parallel.DistributedDataParallel(LogprobModel(model))


def main() -> None:
    folder, engine = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if engine.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__.clear()  # compile nothing: gloo does what its kernels would do
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    else:
        dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    config = LlamaConfig(**json.loads((folder / "config.json").read_text()))
    whole = WholeWeights(spread(LlamaForCausalLM(config), engine))
    out = folder / f"{engine}-out"
    dist.barrier()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    if rank == 0:
        out.mkdir()
        written = write_files(whole, [out], cast=Cast(torch.bfloat16))
        assert whole.shapes() == written.shapes
        shapes = whole.shapes()
    else:
        for _ in whole:
            pass
    peak = memory("VmHWM") - before
    samples = [((5, 6, 7), (8, 9)), ((3,), (1,))]
    if rank == 0:
        log_p = whole.reference(samples)
        assert [tuple(rows.shape) for rows in log_p] == [(2, config.vocab_size), (1, config.vocab_size)]
        torch.save(log_p, folder / f"{engine}-log_p.pt")
        whole.done()
    else:
        whole.follow()
    told = {"peak": peak}
    if rank == 0:
        sizes = [torch.Size(shape).numel() * 4 for shape in shapes.values()]
        told |= {"largest": max(sizes), "all": sum(sizes)}
    (folder / f"{engine}-{rank}.json").write_text(json.dumps(told))
    dist.barrier()


if __name__ == "__main__":
    main()
    leave()
