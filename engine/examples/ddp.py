"""`DistributedDataParallel` around a learner: torch's own way to more processes, in one's own loop.

    torchrun --standalone --nproc-per-node 2 -m engine.examples.ddp [iterations]

Every process draws tasks of its own, and backward averages the gradients. (`engine.fit` under
torchrun needs none of this: it shares out the tasks of an iteration, and its results are the same
bits whatever the number of processes, which an average's are not.)
"""

import gc
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine import Learner
from engine.errors import UserError
from engine.examples import script
from engine.examples.sinusoid import TASKS, waves


def main(iterations: int) -> Learner:
    if "RANK" not in os.environ:
        raise UserError("this is of several processes: start it by torchrun, as --help shows")
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # all begin with the same network
    network = nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )
    learner = Learner(network, F.mse_loss, rate=0.01)
    model = DistributedDataParallel(learner)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(1 + rank)
    for i in range(1, iterations + 1):
        loss = model(waves(max(1, TASKS // size), generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and i % 50 == 0:
            print(f"iteration {i}: loss {loss.item():.4f} of the tasks of rank 0")
    del model, loss
    gc.collect()  # else the model ends its group, and may wait for ever for a thread of it
    dist.destroy_process_group()
    return learner


if __name__ == "__main__":
    script.run(main, __doc__, iterations=1000)
