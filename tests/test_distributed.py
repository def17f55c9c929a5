"""Two processes (gloo): every method trains as in one, sharded (FSDP2) or not (DDP), or
says that it cannot.
"""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hra
from tests.test_every_adapter import CASES

NAMES = [n for n in CASES if "dropout" not in n]
# by FSDP2, in words: they need whole tensors
REFUSED = {"PRANC", "ReLoRA", "ReMoRA", "LoSiA", "LoSiAPro", "SpIEL", "SoRA"}
REFUSED |= {"DiffPruning"}
STEPS = 4


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12))
            for _ in range(2)
        )

    def forward(self, x):
        for b in self.blocks:
            x = x + b(x)
        return x


def train(tuned, model, x):
    opt = torch.optim.AdamW(tuned.param_groups(0.02))
    for step in range(1, STEPS + 1):
        F.mse_loss(model(x), torch.sin(3 * x)).backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
    return {k: hra.model.whole(v) for k, v in tuned.state_dict().items()}


def made(name):
    torch.manual_seed(0)
    cls, hyper, _ = CASES[name]
    model = Blocks().double()
    return model, hra.attach(model, cls, **hyper)


def worker(rank, port, names, out):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    from torch.distributed.fsdp import fully_shard

    data = torch.randn(8, 12, generator=torch.Generator().manual_seed(5)).double()
    mine = data[rank * 4 : rank * 4 + 4]
    for name in names:
        model, tuned = made(name)
        want = train(tuned, model, data)
        found = {}
        model, tuned = made(name)
        found["DDP"] = train(tuned, DistributedDataParallel(model), mine)
        model, tuned = made(name)
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if name.partition("-")[0] in REFUSED:
            with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
                train(tuned, model, mine)
        else:
            found["FSDP2"] = train(tuned, model, mine)
        for how, got in found.items():
            assert got.keys() == want.keys()
            off = max(
                (got[k] - want[k]).abs().max().item() for k in want if want[k].numel()
            )
            if rank == 0:
                out[f"{name} {how}"] = off
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with mp.Manager() as manager:
        out = manager.dict()
        mp.spawn(worker, args=(port, NAMES, out), nprocs=2)
        off = dict(out)
    refused = sum(name.partition("-")[0] in REFUSED for name in NAMES)
    assert len(off) == 2 * len(NAMES) - refused
    assert {k: v for k, v in off.items() if not v < 1e-12} == {}
