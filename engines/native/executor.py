"""A plan as a list of launches: ways chosen once, addresses put in whenever memory has moved."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diffusion_rt.engines.native.launches import ways
from diffusion_rt.engines.native.plan import ALIGNMENT, ITEM, Plan, View
from diffusion_rt.engines.native.ways import Call, Chip, LibraryCall, Way, Ways
from diffusion_rt.kernels.variant import Variant

Choose = Callable[[Ways], Way]


def likely_fastest(found: Ways) -> Way:
    """The choice where nothing was measured."""
    return found.ways[0]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything lies right now: what `launches.Places` asks for."""

    bases: Mapping[str, int]  # of the plan's buffers
    weights: Callable[[str], int]
    scratch: int
    counters: int

    def view(self, view: View) -> int:
        """The address of a view's first element."""
        return self.bases[view.buffer] + view.offset * ITEM[view.dtype]

    def weight(self, name: str) -> int:
        """The address of a weight."""
        return self.weights(name)


class Program:
    """A plan with one way chosen for each operation; knows no addresses yet."""

    def __init__(self, plan: Plan, chip: Chip, choose: Choose = likely_fastest) -> None:
        """Choose; raises NoKernel where none takes an operation."""
        self.plan = plan
        self.options = tuple(ways(operation, plan, chip) for operation in plan.operations)
        self.ways = tuple(choose(found) for found in self.options)
        self._scratch = -(-plan.arena_size // ALIGNMENT) * ALIGNMENT

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The kernels that it launches, each once."""
        return tuple(dict.fromkeys(variant for way in self.ways for variant in way.variants))

    @property
    def nbytes(self) -> int:
        """Of activations, and of what operations need for themselves."""
        return self._scratch + max((way.scratch_bytes for way in self.ways), default=0)

    @property
    def counters(self) -> int:
        """How many uint32 the operations need, which one after the other leaves zero."""
        return max((way.counters for way in self.ways), default=0)

    @property
    def most(self) -> tuple[int, int]:
        """Bytes and counters with whichever ways."""
        every = [way for found in self.options for way in found.ways]
        scratch = max((way.scratch_bytes for way in every), default=0)
        return self._scratch + scratch, max((way.counters for way in every), default=0)

    def places(
        self, *, arena: int, counters: int, bound: Mapping[str, int], weight: Callable[[str], int]
    ) -> Addresses:
        """The addresses of everything; `bound` has those of the graph's inputs and outputs."""
        bases = {
            name: arena + buffer.offset if buffer.place == "arena" else bound[name]
            for name, buffer in self.plan.buffers.items()
        }
        return Addresses(bases, weight, arena + self._scratch, counters)

    def calls(self, places: Addresses) -> list[Call | LibraryCall]:
        """All launches in order."""
        return [call for way in self.ways for call in way.calls(places)]
