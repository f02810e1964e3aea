"""Several processes that are one learner: how they meet, speak to each other and notice that one is gone.

Everybody does the same things in the same order; whatever is said here is said by all ranks at once (a collective). No
wait is without a deadline: a rank that dies is noticed at once where its connection breaks, and one that hangs after
`timeout_s`. Either way the others raise `RanksError` and have to end, because the group cannot go on without it; the run
resumes from the checkpoint. On NCCL the end comes from torch's watchdog, which ends the process itself.

What travels is raw bytes and numbers in tensors, never a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class RanksError(RuntimeError):
    """The ranks did not come together, or one of them is gone; the message says which rank noticed it, and where.

    Whoever catches it says so and ends the process by `os._exit`: operations that wait for the lost rank may still be held by
    gloo's threads, and an ordinary exit with them has been seen to abort (once in some 130 runs, cause not found).
    """


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of one learner, 0 <= rank < world. Made by `alone` or `join`.

    mesh: what a model is sharded over; None for a learner of one process, where everything below is the identity.
    """

    rank: int
    world: int
    device: torch.device
    mesh: DeviceMesh | None = None

    @classmethod
    def alone(cls, device: str = "cpu") -> Ranks:
        """A learner of one process."""
        return cls(0, 1, torch.device(device))

    @classmethod
    def join(cls, rank: int, world: int, meeting: str, timeout_s: float, device: str = "cpu") -> Ranks:
        """Meets the others; returns when all are there. A process belongs to one group at a time.

        `meeting` is "tcp://HOST:PORT", where rank 0 listens, or "file:///PATH" on a file system that all see; the file
        must not exist before, so that a restarted group takes another. On a GPU ("cuda:0") the ranks speak NCCL, else gloo.
        `timeout_s` bounds the meeting and every wait afterwards.

        Raises RanksError when not all come in time, ValueError for a place outside the world or an unknown meeting.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not in 0 .. {world - 1}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}; without a deadline a lost rank would be waited for for ever")
        place = torch.device(device)
        if world == 1:
            return cls(rank, world, place)
        _check_meeting(meeting)
        timeout = timedelta(seconds=timeout_s)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        try:
            dist.init_process_group(
                "nccl" if place.type == "cuda" else "gloo",
                init_method=meeting,
                rank=rank,
                world_size=world,
                timeout=timeout,
            )
            joined = cls(rank, world, place, init_device_mesh(place.type, (world,)))
            joined.sum([0.0])  # connections are made on first use: a rank that cannot be reached shows here
        except RuntimeError as error:
            raise RanksError(
                f"rank {rank} of {world}: no meeting at {meeting} within {timeout_s:g} s: {error}"
            ) from error
        return joined

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks to the world: hub, publications, checkpoints, logs."""
        return self.rank == 0

    def close(self) -> None:
        """Leaves the group when all is done. After a RanksError the process ends without it."""
        if self.world > 1:
            dist.destroy_process_group()

    @contextmanager
    def noticing(self, what: str) -> Iterator[None]:
        """Turns what torch raises about a lost rank inside `what` into RanksError; everything else passes as it is.

        For forward and backward of a sharded model, which speak to the other ranks by themselves.
        """
        try:
            yield
        except RanksError:
            raise
        except RuntimeError as error:
            # gloo says what it has to say in plain RuntimeErrors that begin with the place in its source
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise RanksError(
                f"rank {self.rank} of {self.world}, {what}: another rank is gone or hangs: {error}"
            ) from error

    # ------------------------------------------------------------------------------------------------------- messages

    def share(self, message: bytes = b"") -> bytes:
        """Rank 0's message, on every rank; what the others give is not looked at.

        Rank 0 does not wait for it to be read: that a reader is gone it may hear from the next sum only.
        """
        if self.world == 1:
            return message
        with self.noticing("sharing a message"):
            size = torch.tensor([len(message)], dtype=torch.int64, device=self.device)
            dist.broadcast(size, src=0)
            content = self._octets(message) if self.first else torch.empty(int(size), dtype=torch.uint8)
            content = content.to(self.device)
            if content.numel():
                dist.broadcast(content, src=0)
        return message if self.first else bytes(content.cpu().numpy())

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value added up over the ranks, in float64; all ranks give equally many and get bit for bit the same."""
        if self.world == 1:
            return [float(value) for value in values]
        with self.noticing("adding up numbers"):
            total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def collect(self, values: Tensor) -> list[Tensor]:
        """`values` [n] of every rank, by rank, on every rank; each may have its own n, all have one type."""
        if self.world == 1:
            return [values]
        own = values.detach().to(self.device)
        with self.noticing("collecting values"):
            sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor([len(own)], dtype=torch.int64, device=self.device))
            counts = [int(size) for size in sizes]
            padded = torch.zeros(max(counts), dtype=own.dtype, device=self.device)
            padded[: len(own)] = own
            columns = [torch.empty_like(padded) for _ in range(self.world)]
            if max(counts):
                dist.all_gather(columns, padded)
        return [column[:count].to(values.device) for column, count in zip(columns, counts, strict=True)]

    def faults(self, own: str = "") -> list[str]:
        """What is wrong, on any rank, for every rank to know: the texts that are not empty, by rank.

        A rank that raised on its own would leave the others waiting in their next collective; so what one finds (a loss
        that is not finite) is first told here, and then all raise, or none.
        """
        told = self.collect(self._octets(json.dumps(own).encode()))
        return [text for text in (str(json.loads(bytes(octets.cpu().numpy()))) for octets in told) if text]

    @staticmethod
    def _octets(message: bytes) -> Tensor:
        # frombuffer wants memory that may be written to, and more than none of it
        return torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.empty(0, dtype=torch.uint8)


def _check_meeting(meeting: str) -> None:
    place = urlsplit(meeting)
    tcp = place.scheme == "tcp" and place.hostname and place.port
    file = place.scheme == "file" and place.path and not place.netloc
    if not (tcp or file):
        raise ValueError(f"the ranks cannot meet at {meeting!r}; give tcp://HOST:PORT or file:///PATH")
