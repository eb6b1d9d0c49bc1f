"Gradients of a batch that two processes share, by DistributedDataParallel and by fully_shard."
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

def without_statistics(model: nn.Module) -> nn.Module:
    "In training, but for batch norms: each process would have its own statistics, in any model."
    for module in model.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm): module.eval()
    return model

def gradients(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict:
    "Of each parameter, from a call of the model."
    cross_entropy(model(images), labels).backward()
    return {n: p.grad for n, p in model.named_parameters()}

def replicated(model: nn.Module, images, labels) -> dict:
    return {n.removeprefix("module."): g for n, g in gradients(DistributedDataParallel(model), images, labels).items()}

def sharded(model: nn.Module, images, labels) -> dict:
    mesh = init_device_mesh("cpu", (2,))
    for block in getattr(model, "backbone", model).blocks: fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return {n: g.full_tensor() for n, g in gradients(model, images, labels).items()}

def work(rank: int, folder: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    "What one process does: the same for each model, on its half of the batch."
    from clients import MODELS
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    halves, found = (images.chunk(2)[rank], labels.chunk(2)[rank]), {}
    for name, make in MODELS.items():
        for how in (replicated, sharded):
            try: found[name, how.__name__] = how(without_statistics(make()), *halves)
            except Exception as error:  # both processes fail alike, and the test of this model says why
                found[name, how.__name__] = repr(error)
    if rank == 0: torch.save(found, f"{folder}/gradients.pt")
    dist.destroy_process_group()

def in_two_processes(folder: str, images: torch.Tensor, labels: torch.Tensor) -> dict:
    "{(model, how): gradients by name, or what went wrong}."
    mp.spawn(work, (folder, images, labels), nprocs=2)
    return torch.load(f"{folder}/gradients.pt")

