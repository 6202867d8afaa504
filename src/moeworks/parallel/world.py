"""Data parallelism: who takes part, and sums over all of them."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from moeworks.errors import check

_PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others in a step, a validation or a checkpoint before it gives up."""
_PREPARATION = timedelta(days=2)
"""How long the others wait while the main rank prepares a large corpus."""
_BUCKET_ELEMENTS = 16 * 1024 * 1024


@dataclass(frozen=True)
class World:
    """The processes of a run. The default is one process, where every sum is the value itself."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    preparation: dist.ProcessGroup | None = None
    """Process group of all ranks on the CPU, with a longer timeout, for what comes before the first step."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all ranks, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of `tensors` over all ranks, added in float64 and sent as one message."""
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = self.sum_(torch.cat([tensor.reshape(-1).double() for tensor in tensors]))
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.to(tensor.dtype).view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def sum_gradients_(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks.

        One that is missing on some ranks counts as 0 there. One that is missing on all of them stays missing:
        optimizers then leave the parameter alone, as they do with one process.
        """
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        present = [float(p.grad is not None) for p in trained]
        somewhere = self.sum_(torch.tensor(present, device=self.device)).tolist()
        for bucket in _buckets([p for p, count in zip(trained, somewhere, strict=True) if count]):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = self.sum_(torch.cat([g.reshape(-1) for g in gradients]))
            pieces = flat.split([p.numel() for p in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)

    def share_(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by the main rank's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def any(self, flag: bool, *, preparing: bool = False) -> bool:
        """Whether `flag` is set on at least one rank; with `preparing`, ranks wait for days."""
        if self.size == 1:
            return flag
        if preparing and self.preparation is not None:
            found = torch.tensor(float(flag))
            dist.all_reduce(found, group=self.preparation)
            return bool(found > 0)
        return bool(self.sum_(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str = "auto") -> Generator[World]:
    """The world that torchrun set up, or a world of one.

    Args:
        device: auto takes one GPU per process where there are GPUs (NCCL), else the CPU (gloo).

    Raises ConfigError when `device` asks for GPUs and there are none, or fewer than processes.
    """
    use_gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    check(not use_gpu or torch.cuda.is_available(), "train.device", device, "torch finds no GPU here")
    if not dist.is_torchelastic_launched():
        yield World(device=torch.device("cuda" if use_gpu else "cpu"))
        return
    local = torch.device("cpu")
    if use_gpu:
        number, found = dist.get_node_local_rank(), torch.cuda.device_count()
        check(number < found, "train.device", device, f"process {number} has no GPU: torch finds {found}")
        local = torch.device("cuda", number)
        torch.cuda.set_device(local)
    dist.init_process_group(
        "nccl" if use_gpu else "gloo", timeout=_PATIENCE, device_id=local if use_gpu else None
    )
    try:
        preparation = dist.new_group(backend="gloo", timeout=_PREPARATION)
        assert isinstance(preparation, dist.ProcessGroup)  # an int if this rank is not a member
        yield World(dist.get_rank(), dist.get_world_size(), local, preparation)
    finally:
        dist.destroy_process_group()


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Runs of parameters of one dtype, up to _BUCKET_ELEMENTS each: few messages, bounded memory."""
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > _BUCKET_ELEMENTS
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
