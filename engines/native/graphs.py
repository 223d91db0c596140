"""The graphs of a model folder on one device, by kernels of our own."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from diffusion_rt.engines.device.bucket import loop_kernels
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.memory import short_of_memory
from diffusion_rt.engines.errors import BadInput, NoKernel, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.arena import Arena
from diffusion_rt.engines.native.engine import NativeEngine, Signature
from diffusion_rt.engines.native.executor import Choose, Program, likely_fastest
from diffusion_rt.engines.native.kept_weights import PackedFiles
from diffusion_rt.engines.native.lower import plan_of, precision_of
from diffusion_rt.engines.native.needed import Target, runs
from diffusion_rt.engines.native.plan import Arithmetic, Plan, Weight
from diffusion_rt.engines.native.precision import arithmetic
from diffusion_rt.engines.native.ways import (
    Call,
    Chip,
    Enqueue,
    Library,
    LibraryCall,
    launching,
)
from diffusion_rt.engines.native.weights import Weights
from diffusion_rt.engines.native.written import Written
from diffusion_rt.engines.spec import Precision
from diffusion_rt.kernels.cache import Progress

OLDEST = 80  # sm_80: the first chip that copies past registers and multiplies bfloat16
PROGRAMS = 16  # sizes of one graph whose plans are kept
SPARE = 1.05  # of what is reckoned is planned with: tables, counters, what pages round up

UNET = ("unet_prompt", "unet_timestep", "unet_step")


class NativeGraphs:
    """A `DeviceGraphs`: one copy of each graph's weights, one arena for all."""

    def __init__(
        self,
        folder: ModelFolder,
        gpu: Gpu,
        *,
        precision: Precision = "float16",
        choose: Choose = likely_fastest,
        overlap: Collection[str] = (),
        libraries: tuple[Library, ...] = (),
    ) -> None:
        """Open nothing yet; `gpu` is the caller's, and `libraries` are closed with the graphs.

        `precision` is that of `open` where it is given none. In the graphs named by `overlap`
        kernels that wait for the one ahead by themselves may start before it ends (sm_90 and
        newer). Raises BadInput where the chip is too old.
        """
        check_chip(gpu)
        self.folder, self.gpu = folder, gpu
        self._precision = precision
        self._choose = choose
        self.overlap = overlap
        """Those graphs, of engines that are bound from now on."""
        self._libraries = libraries
        device = gpu.device
        with translated("the native engine"):
            self._stream = device.stream()
            self.arena = Arena(device, self._wait)
        self._encode = device.tensor_map if device.arch >= 90 else None
        self._loaded: dict[tuple[str, Arithmetic], LoadedGraph] = {}
        self._packed = PackedFiles(folder)
        self._written = Written(folder, precision)

    @property
    def name(self) -> str:
        """What `--engine` calls it."""
        return "native"

    def open(self, graph: str, precision: Precision | None = None) -> NativeEngine:
        """An engine of one graph; its weights are read when it is first bound."""
        return self.loaded(graph, precision).open()

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Nothing: plans are made for any size; what has no kernel is heard when it is bound."""

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        """How many images there is memory for; 1 where there is not even room for that.

        Raises NoKernel where a step of this size has an operation that no kernel takes.
        """
        _, height, width = latent_shape
        count = images
        while True:
            sizes = {"batch": rows * count, "height": height, "width": width, "tokens": tokens}
            needed = self._step_bytes(sizes)
            free = self.gpu.device.memory().free + self.arena.nbytes
            if needed <= free or count == 1:
                return count
            count = max(1, min(count - 1, count * free // needed))

    def loaded(self, graph: str, precision: Precision | None = None) -> "LoadedGraph":
        """What the engines of a graph share."""
        dtype = arithmetic(self.folder, graph, precision, self._precision)
        key = (graph, dtype)
        if key not in self._loaded:
            self._loaded[key] = LoadedGraph(self, graph, dtype)
        return self._loaded[key]

    def planned(self, graph: str, dtype: Arithmetic, sizes: Mapping[str, int]) -> Program:
        """The plan of a graph at one size, its ways chosen; no weight is read."""
        chip = Chip(self.gpu.device.limits, self._encode, self._libraries, self.gpu.plain)
        return Program(plan_of(self.folder, graph, sizes, dtype), chip, self._choose)

    def choose_anew(self, choose: Choose) -> None:
        """Let every size that is bound from now on run as `choose` says."""
        self._choose = choose
        for loaded in self._loaded.values():
            loaded.forget_plans()

    def compile(self, target: Target, progress: Progress | None = None) -> None:
        """Compile the kernels of a target, as they are chosen; no weight is read.

        What no kernel takes is left out: that is heard when it is drawn, which may be in tiles.
        """
        variants = list(loop_kernels(self._precision, self._precision).values())
        for graph, sizes in runs(target):
            with suppress(NoKernel):
                variants += self.loaded(graph).planned(sizes).variants
        self.gpu.compile(variants, progress)

    def bring_weights(self, plan: Plan) -> Weights:
        """The weights of a plan, on the device, from a packed file where there is one.

        Tensors that were written are as they were written. Raises BadInput where one is not finite.
        """
        weights = Weights(self.gpu.device, self._stream, plan.weights.values(), plan.constants)
        try:
            if not self._packed.bring(weights, plan.graph, plan.dtype):
                weights.stream_from(self.folder.path)
            self._written.apply(weights)
        except BaseException:
            weights.close()
            raise
        return weights

    def write(self, component: str, name: str, values: NDArray[Any]) -> None:
        """Replace a tensor of the checkpoint in every graph that has it, until `restore`.

        `component` is its folder there, such as unet, `name` the parameter's in the graphs, and
        `values` are float32 or float16 of its stored shape, of which a copy is kept. Waits for
        what is under way; what is enqueued or replayed later sees the new values, also when weights
        were given back and streamed again. Raises BadInput where no graph has the tensor, and
        where the values are of another shape or type or not finite; all then stays as it was.
        """
        self._wait()
        self._written.write((component, name), values, self._on_device())

    def restore(self, component: str, name: str) -> None:
        """Undo `write`: the tensor's own values, read from the checkpoint.

        Does nothing where it was not written. Raises BadInput where no graph has the tensor, or its
        file is cut short; what was written then stays.
        """
        self._wait()
        self._written.restore((component, name), self._on_device())

    def ready(self, call: Call | LibraryCall, graph: str) -> Enqueue:
        """A call of a graph with its kernel loaded."""
        if isinstance(call, LibraryCall):
            return call.enqueue
        kernel, launch = self.gpu.kernel(call.variant), call.launch
        if graph in self.overlap and self.gpu.may_overlap(call.variant):
            launch = replace(launch, overlap=True)
        return launching(kernel, launch, call.arguments)

    def left_by(self, engine: NativeEngine) -> None:
        """Give back what only the closed engine needed: weights, and what the arena has too much.

        The three parts of the UNet come and go together: between two sizes one may have no engine.
        """
        graph = engine.graph
        parts = UNET if graph in UNET else (graph,)
        family = [loaded for loaded in self._loaded.values() if loaded.graph in parts]
        if any(loaded.engines for loaded in family):
            return
        engine.wait()
        for loaded in family:
            loaded.drop_weights()
        programs = [
            other.program
            for loaded in self._loaded.values()
            for other in loaded.engines
            if other.program is not None
        ]
        self.arena.shrink(max((program.nbytes for program in programs), default=0))

    def close(self) -> None:
        """Give back everything; engines that are still open are closed."""
        with translated("the native engine"):
            for loaded in self._loaded.values():
                loaded.close()
            self._loaded.clear()
            for library in self._libraries:
                library.close()
            self.arena.close()
            self._stream.close()

    def _step_bytes(self, sizes: Mapping[str, int]) -> int:
        """Of one evaluation: activations, what is bound, and the UNet where it is not there yet."""
        found = self.loaded("unet_step")
        program = found.planned(sizes)
        plan = program.plan
        bound = sum(b.size for b in plan.buffers.values() if b.place != "arena")
        weights = 0 if found.weights_bytes else plan.weights_size
        return int(SPARE * (program.nbytes + bound + weights))

    def _on_device(self) -> list[Weights]:
        every = (loaded.there for loaded in self._loaded.values())
        return [weights for weights in every if weights is not None]

    def _wait(self) -> None:
        for loaded in self._loaded.values():
            for engine in loaded.engines:
                engine.wait()


class LoadedGraph:
    """What the engines of one graph share: signature, weights, plans by size."""

    def __init__(self, graphs: NativeGraphs, graph: str, dtype: Arithmetic) -> None:
        """Nothing is read but the manifest."""
        variant = graphs.folder.variant(graph, precision_of(dtype))
        self.graph, self.dtype = graph, dtype
        self.inputs: Signature = {spec.name: spec for spec in variant.inputs}
        self.outputs: Signature = {spec.name: spec for spec in variant.outputs}
        self.arena = graphs.arena
        self.engines: list[NativeEngine] = []
        self._graphs = graphs
        self._symbols = {d for spec in variant.inputs for d in spec.shape if isinstance(d, str)}
        self._weights: Weights | None = None
        self._wanted: Mapping[str, Weight] = {}
        self._programs: OrderedDict[tuple[tuple[str, int], ...], Program] = OrderedDict()

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights on the device."""
        return 0 if self._weights is None else self._weights.nbytes

    @property
    def there(self) -> Weights | None:
        """The weights, as long as they are on the device."""
        return self._weights

    @property
    def weights(self) -> Weights:
        """The weights, to look at or to write to; something must be bound."""
        assert self._weights is not None, "bind comes first"
        return self._weights

    def open(self) -> NativeEngine:
        """One more engine."""
        engine = NativeEngine(self)
        self.engines.append(engine)
        return engine

    def planned(self, sizes: Mapping[str, int]) -> Program:
        """The plan for a size, made or found."""
        known = {symbol: size for symbol, size in sizes.items() if symbol in self._symbols}
        key = tuple(sorted(known.items()))
        if key not in self._programs:
            self._programs[key] = self._graphs.planned(self.graph, self.dtype, known)
        self._programs.move_to_end(key)
        while len(self._programs) > PROGRAMS:
            self._programs.popitem(last=False)
        return self._programs[key]

    def forget_plans(self) -> None:
        """Plan every size anew when it is asked for."""
        self._programs.clear()

    def program(self, sizes: Mapping[str, int]) -> Program:
        """The same, with kernels, weights and arena there for it. Raises OutOfMemory."""
        program, graphs = self._with_kernels(sizes), self._graphs
        more = max(0, program.nbytes - self.arena.nbytes)
        weights = 0 if self._weights is not None else program.plan.weights_size
        memory = graphs.gpu.device.memory()
        if more + weights > memory.free:
            short = short_of_memory(self.graph, more + weights, memory.free)
            never = program.nbytes + program.plan.weights_size > memory.total
            raise OutOfMemory(f"{short}{self._smaller(sizes, memory.total) if never else ''}")
        with translated(self.graph):
            self.arena.reserve(program.nbytes, program.counters)
            if self._weights is None:
                self._weights = graphs.bring_weights(program.plan)
                self._wanted = program.plan.weights
        assert program.plan.weights == self._wanted, "weights do not depend on sizes"
        return program

    def _with_kernels(self, sizes: Mapping[str, int]) -> Program:
        """The plan for a size, its kernels loaded; another where the driver takes not all."""
        program, gpu = self.planned(sizes), self._graphs.gpu
        gpu.prepare(program.variants)
        if gpu.plain and any(variant.suffix for variant in program.variants):
            self.forget_plans()
            program = self.planned(sizes)
            gpu.prepare(program.variants)
        return program

    def _smaller(self, sizes: Mapping[str, int], total: int) -> str:
        """Which smaller picture would fit into so many bytes, where this one never does."""
        if not {"height", "width"} <= self._symbols:
            return ""
        factor = self._graphs.folder.manifest.vae.factor
        pixels = 1 if self.graph == "vae_encoder" else factor
        for eighths in range(7, 0, -1):
            less = {side: max(1, sizes[side] * eighths // 8) for side in ("height", "width")}
            program = self.planned({**sizes, **less})
            if program.nbytes + program.plan.weights_size <= total:
                return f"; {pixels * less['width']}x{pixels * less['height']} would fit"
        return "; no size would fit"

    def address(self, weight: str) -> int:
        """Where a weight lies."""
        return self.weights.address(weight)

    def ready(self, call: Call | LibraryCall) -> Enqueue:
        """A call with its kernel loaded."""
        return self._graphs.ready(call, self.graph)

    def left_by(self, engine: NativeEngine) -> None:
        """Forget an engine."""
        self.engines.remove(engine)
        self._graphs.left_by(engine)

    def close(self) -> None:
        """Close all engines and give the weights back."""
        for engine in list(self.engines):
            engine.wait()
            engine.close()
        self.drop_weights()

    def drop_weights(self) -> None:
        """Give the weights back; they are read again when an engine is bound."""
        if self._weights is not None:
            self._weights.close()
        self._weights = None


def check_chip(gpu: Gpu) -> None:
    """Raise BadInput where the chip is older than the kernels can run on."""
    device = gpu.device
    if device.arch < OLDEST:
        raise BadInput(
            f"engine native: {device.name} is sm_{device.arch}, sm_{OLDEST} or newer is wanted "
            "(Ampere, 2020); run with --engine ort"
        )
