"""What is kept for sizes, and what goes for another."""

from dataclasses import dataclass, field

import pytest

from diffusion_rt.engines.device.recent import Recent
from diffusion_rt.engines.errors import OutOfMemory


@dataclass
class Memory:
    """Room for so many things at once."""

    room: int
    held: list[int] = field(default_factory=list)
    made: int = 0

    def make(self, size: int) -> "Held":
        if len(self.held) >= self.room:
            raise OutOfMemory(f"{size} does not fit")
        self.held.append(size)
        self.made += 1
        return Held(self, size)


@dataclass
class Held:
    memory: Memory
    size: int
    grown: bool = False

    def grow(self) -> None:
        if not self.grown and len(self.memory.held) >= self.memory.room:
            raise OutOfMemory(f"{self.size} does not grow")
        self.grown = True

    def close(self) -> None:
        self.memory.held.remove(self.size)


def use(recent: Recent[int, Held], memory: Memory, size: int) -> Held:
    return recent.use(size, lambda: memory.make(size))


def test_the_sizes_used_last_are_kept() -> None:
    memory, recent = Memory(9), Recent[int, Held](2)
    for size, held in ((1, [1]), (2, [1, 2]), (1, [1, 2]), (3, [1, 3]), (2, [3, 2])):
        assert use(recent, memory, size).size == size
        assert memory.held == held
    assert memory.made == 4
    recent.close()
    assert memory.held == []


def test_others_go_where_memory_runs_out_the_longest_unused_first() -> None:
    memory, recent = Memory(3), Recent[int, Held](9)
    for size in (1, 2, 3, 1, 4):
        use(recent, memory, size)
    assert memory.held == [1, 3, 4]
    memory.room = 2
    grown = recent.use(3, lambda: memory.make(3), Held.grow)
    assert grown.grown
    assert memory.held == [3]


def test_with_none_left_it_is_an_error_and_nothing_is_held() -> None:
    memory, recent = Memory(2), Recent[int, Held](9)
    for size in (1, 2):
        use(recent, memory, size)
    memory.room = 0
    with pytest.raises(OutOfMemory, match="3 does not fit"):
        use(recent, memory, 3)
    assert memory.held == []
    memory.room = 1
    with pytest.raises(OutOfMemory, match="5 does not grow"):
        recent.use(5, lambda: memory.make(5), Held.grow)
    assert memory.held == []
    memory.room = 2
    assert use(recent, memory, 3).size == 3
