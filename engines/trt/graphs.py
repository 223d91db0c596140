"""The plans of a model folder, as the graphs of a device."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from diffusion_rt.engines.device.errors import translated
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.protocol import AT_ONCE, DeviceEngine
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.spec import Precision
from diffusion_rt.engines.trt.again import bucket_of, build_command
from diffusion_rt.engines.trt.buckets import Bucket, not_built, spelt
from diffusion_rt.engines.trt.engine import Loaded, TrtEngine
from diffusion_rt.engines.trt.key import Machine
from diffusion_rt.engines.trt.loading import load_plan
from diffusion_rt.engines.trt.messages import Messages
from diffusion_rt.engines.trt.places import folders_to_load, latest_first
from diffusion_rt.engines.trt.plan_file import PlanHeader, check_usable, plan_path, read_header
from diffusion_rt.engines.trt.profiles import Range
from diffusion_rt.engines.trt.scratch import Scratch

OPTIONAL = ("vae_encoder",)


class TrtGraphs:
    """Opens plans when they are wanted; engines of one graph share its weights.

    All engines compute in one piece of scratch memory, which moves when a neediest comes.
    """

    def __init__(self, model: ModelFolder, gpu: Gpu, tensorrt: str) -> None:
        """Find the plans for this GPU and TensorRT; nothing of them is loaded yet.

        Raises BadInput where a graph has none that can be used here: it says why, and how to build
        it.
        """
        device = gpu.device
        self._model, self._gpu = model, gpu
        self._machine = Machine(
            gpu=device.name, arch=device.arch, driver=device.driver, tensorrt=tensorrt
        )
        self._messages = Messages()
        self._scratch = Scratch(device)
        with translated("engine trt"):
            self._stream = device.stream()
        self._chunk = max(encoder.max_length for encoder in model.manifest.text_encoders)
        self._plans = find_plans(model, self._machine)
        self._loaded: dict[str, Loaded] = {}
        self._open: list[TrtEngine] = []

    @property
    def name(self) -> str:
        """What `--engine` calls it."""
        return "trt"

    def open(self, graph: str, precision: Precision | None = None) -> DeviceEngine:
        """An engine of one graph; its plan is loaded if no other engine uses it."""
        folder, header = self._plan(graph)
        if precision is not None:
            self.check_precision(graph, precision)
        if graph not in self._loaded:
            device, messages = self._gpu.device, self._messages
            with translated(graph):
                loaded = load_plan(folder, graph, self._model, self._machine, device, messages)
            self._loaded[graph] = Loaded(*loaded)
        self._loaded[graph].users += 1
        engine = TrtEngine(
            self._loaded[graph],
            self._scratch,
            self._stream,
            self._messages,
            outside=partial(self._outside, header),
            closed=self._drop,
        )
        self._open.append(engine)
        return engine

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """BadInput where no profile of a graph's plan holds these sizes; no plan is loaded."""
        header = self._plan(graph)[1]
        if not any(profile.holds(sizes) for profile in header.key.profiles):
            raise self._outside(header, sizes)

    def check_precision(self, graph: str, precision: Precision) -> None:
        """BadInput where the plan of a graph computes in another precision."""
        arithmetic = self._plans[graph][1].key.edits.arithmetic
        if arithmetic != precision:
            flag = "vae_precision" if graph.startswith("vae_") else "precision"
            raise BadInput(
                f"{graph}: its plan computes in {arithmetic}, {precision} is wanted; build it "
                f"again: {self._build(**{flag: precision})}"
            )

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        """How many images the profiles of all three parts of the UNet take at once."""
        _, height, width = latent_shape
        for count in range(images, 0, -1):
            batch = rows * count
            try:
                self.check(
                    "unet_step",
                    {"batch": batch, "tokens": tokens, "height": height, "width": width},
                )
                self.check("unet_prompt", {"batch": batch, "tokens": tokens})
                self.check("unet_timestep", {"n": AT_ONCE * batch})
            except BadInput:
                if count == 1:
                    raise
            else:
                return count
        raise AssertionError("at least one image is asked for")

    def close(self) -> None:
        """Close every engine, and give back the memory."""
        for engine in list(self._open):
            engine.close()
        self._scratch.close()
        self._stream.close()

    def _drop(self, engine: TrtEngine) -> None:
        self._open.remove(engine)
        loaded = self._loaded[engine.graph]
        loaded.users -= 1
        if not loaded.users:
            del self._loaded[engine.graph]
        if not self._loaded:
            self._scratch.close()

    def _plan(self, graph: str) -> tuple[Path, PlanHeader]:
        """The folder of a graph's plan, and its header; BadInput where it has none."""
        if graph not in self._plans:
            raise BadInput(f"{graph}: {_none_built(self._model)}")
        return self._plans[graph]

    def _outside(self, header: PlanHeader, sizes: Mapping[str, int]) -> BadInput:
        """The error for sizes that no profile of a plan holds.

        Where the plan of `unet_step` holds them, as after a build that was interrupted, the command
        is the one that built it, which makes what is missing.
        """
        graph, profiles = header.key.graph, header.key.profiles
        within = [p for p in profiles if p.holds(_only(sizes, "height", "width"))]
        if not within:
            return self._no_bucket(graph, sizes)
        for symbol, size in sizes.items():
            ranges = [p.sizes[symbol] for p in within if symbol in p.sizes]
            if ranges and not any(r.min <= size <= r.max for r in ranges):
                changed = self._changed(symbol, size, ranges) if graph == "unet_step" else {}
                return BadInput(
                    f"{graph}: {symbol} {size} is not within {ranges[0]} (min:opt:max) that its "
                    f"plan is built for; run: {self._build(**changed)}"
                )
        told = ", ".join(f"{symbol} {size}" for symbol, size in sizes.items())
        return BadInput(f"{graph}: no profile of its plan holds {told}; run: {self._build()}")

    def _no_bucket(self, graph: str, sizes: Mapping[str, int]) -> BadInput:
        """The error for a picture's size that a graph has no profile for."""
        factor = 1 if graph == "vae_encoder" else self._model.manifest.vae.factor
        wanted = Bucket(sizes["width"] * factor, sizes["height"] * factor)
        built = {g: self._buckets(g) for g in ("unet_step", "vae_decoder", graph)}
        whole = [bucket for bucket in built[graph] if all(bucket in of for of in built.values())]
        every = dict.fromkeys([*built["unet_step"], *built[graph], wanted])
        what = f"{graph} is" if wanted in built["unet_step"] else "the engines are"
        command = self._build(buckets=spelt(tuple(every)))
        return not_built(wanted, whole or built[graph], command, what=what)

    def _buckets(self, graph: str) -> list[Bucket]:
        """The picture sizes that a graph's plan is built for."""
        return [bucket_of(profile.name) for profile in self._plans[graph][1].key.profiles]

    def _changed(self, symbol: str, size: int, ranges: Sequence[Range]) -> dict[str, str]:
        """The flag of a build whose `unet_step` takes a size of `batch` or `tokens` too."""
        flag, unit = ("batch", 2) if symbol == "batch" else ("chunks", self._chunk)
        # A profile's least batch is in pictures: without guidance each is one row.
        lowest = min(r.min if symbol == "batch" else r.min // unit for r in ranges)
        least = min(lowest, max(size // unit, 1))
        most = max(-(-size // unit), *(r.max // unit for r in ranges))
        return {flag: f"{least}:{ranges[0].opt // unit}:{most}"}

    def _build(self, **changes: str) -> str:
        headers = {graph: header for graph, (_, header) in self._plans.items()}
        return build_command(self._model, headers, **changes)


def find_plans(model: ModelFolder, machine: Machine) -> dict[str, tuple[Path, PlanHeader]]:
    """For each graph the folder of its plan for a machine, and its header.

    All are of one kind: the most specific that has what drawing needs. Raises BadInput where none
    has; the reason is that of a plan there is.
    """
    reason: BadInput | None = None
    for folders in folders_to_load(model, machine):
        try:
            return _find_all(folders, model, machine)
        except BadInput as error:
            reason = reason or error
    raise reason or BadInput(f"engine trt: {_none_built(model)}")


def _find_all(
    folders: Sequence[Path], model: ModelFolder, machine: Machine
) -> dict[str, tuple[Path, PlanHeader]]:
    found = {}
    for graph in model.manifest.graphs:
        try:
            found[graph] = _find(folders, graph, model, machine)
        except BadInput:
            if graph not in OPTIONAL:
                raise
    return found


def _find(
    folders: Sequence[Path], graph: str, model: ModelFolder, machine: Machine
) -> tuple[Path, PlanHeader]:
    """Of the plans of a graph that can be used the one that was written last."""
    unusable: BadInput | None = None
    for folder in latest_first(folders, graph):
        try:
            header = read_header(folder, graph, ours=True)
            if header is not None:
                check_usable(header, plan_path(folder, graph), model, machine)
                return folder, header
        except BadInput as error:
            unusable = unusable or error
    raise unusable or BadInput(f"engine trt: {graph}: {_none_built(model)}")


def _none_built(model: ModelFolder) -> str:
    return f"no TensorRT plan for this GPU; build it: {build_command(model)}"


def _only(sizes: Mapping[str, int], *symbols: str) -> dict[str, int]:
    return {symbol: sizes[symbol] for symbol in symbols if symbol in sizes}
