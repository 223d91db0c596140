"""The part of ONNX Runtime that is used, with types, and its errors in our words."""

import ctypes
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory, shown

Provider = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_FATAL = 4  # its log level: what fails is raised, and need not stand on the terminal too

# How it says that memory ran out: the C++ allocator, its arena, CUDA.
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "out of memory", "Available memory of")


class Argument(Protocol):
    """An input or output of a session; a dimension is a size, a symbol's name, or unknown."""

    name: str
    type: str  # such as tensor(float)
    shape: Sequence[int | str | None]


class Binding(Protocol):
    """The arrays a session reads and writes."""

    def bind_input(
        self, name: str, device: str, device_id: int, dtype: Any, shape: Sequence[int], address: int
    ) -> None: ...

    def bind_output(
        self, name: str, device: str, device_id: int, dtype: Any, shape: Sequence[int], address: int
    ) -> None: ...


class Session(Protocol):
    """A graph that ONNX Runtime has loaded."""

    def get_inputs(self) -> Sequence[Argument]: ...

    def get_outputs(self) -> Sequence[Argument]: ...

    def get_providers(self) -> Sequence[str]: ...

    def io_binding(self) -> Binding: ...

    def run_with_iobinding(self, binding: Binding) -> None: ...


def load_library() -> Any:
    """The onnxruntime package, silent; BadInput where it is not installed."""
    try:
        library = import_library()
    except ImportError as missing:
        raise BadInput(
            f"engine ort: onnxruntime cannot be imported ({first_line(missing)}); "
            "pip install 'diffusion-rt[cpu]'"
        ) from None
    library.set_default_logger_severity(_FATAL)
    library.disable_telemetry_events()
    return library


def import_library() -> Any:
    """The onnxruntime package as it is; every import of it in this program is this one.

    Its telemetry begins while it is imported, with a file in the user's cache and a look-up of its
    host: only the environment can forbid that. A user who set the variable decides. Raises what
    importing raises; an interruption, which its C++ part wraps in an ImportError, as itself.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt | SystemExit):
            raise error.__cause__ from None
        raise


def check_provider(library: Any, provider: Provider) -> None:
    """BadInput where this build of ONNX Runtime lacks the device."""
    have = library.get_available_providers()
    if PROVIDERS[provider] not in have:
        raise BadInput(
            f"provider {provider}: this onnxruntime has only {', '.join(have)}; "
            "pip uninstall onnxruntime, then pip install 'diffusion-rt[gpu]'"
        )


def preload(library: Any) -> None:
    """Load CUDA and cuDNN from the packages that the extra `gpu` brings, where they are.

    The provider looks for them only where the system's loader does. What is not found is printed,
    on the standard output that is ours; the provider, which cannot start then, is told of anyway.
    """
    with redirect_stdout(StringIO()):
        library.preload_dlls()


def open_session(
    content: bytes,
    file: Path,
    *,
    provider: Provider,
    threads: int,
    entries: Mapping[str, str],
    disabled: Sequence[str] = (),
    profile: Path | None = None,
) -> Session:
    """Load the ONNX model `content`, whose external data is found from the folder of `file`.

    `entries` and `disabled` are ONNX Runtime's session settings and optimisers, by its own names.
    With `profile` it writes what each operator took, when the session ends, to a file whose name
    begins so.
    """
    folder = str(file.parent)
    try:
        folder.encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"{shown(folder)}: onnxruntime takes no path that is not UTF-8; rename the folder"
        ) from None
    library = load_library()
    check_provider(library, provider)
    if provider == "cuda":
        preload(library)
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    # A plan of all buffers is made for one shape and held beside the arena: half as much memory
    # again for the VAE (233 MB against 157 for 512x512), at the same speed.
    options.enable_mem_pattern = False
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    with translated(file.name):
        session = library.InferenceSession(
            content,
            sess_options=options,
            providers=[PROVIDERS[provider]],
            disabled_optimizers=list(disabled) or None,
        )
    if PROVIDERS[provider] not in session.get_providers():
        raise BadInput(
            f"provider {provider}: onnxruntime could not start it, for want of CUDA or a driver; "
            "pip install 'diffusion-rt[gpu]', or run with cpu instead"
        )
    trim_memory()
    return cast(Session, session)


def trim_memory() -> None:
    """Give freed memory back to the system.

    Loading frees much that the allocator keeps: 420 MB of weights are then 680 MB of the process.
    """
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises in the block into one line that begins with `what`."""
    try:
        yield
    except (BadInput, Fault):
        raise
    except MemoryError:
        raise OutOfMemory(f"{what}: the memory there is does not suffice; ask for less") from None
    except Exception as error:
        line = first_line(error)
        if any(words in str(error) for words in _NO_MEMORY):
            raise OutOfMemory(
                f"{what}: the memory there is does not suffice ({line}); ask for less"
            ) from None
        raise Fault(f"{what}: onnxruntime: {line}") from None


def first_line(error: BaseException) -> str:
    """An error's text as it may stand in a one-line message."""
    return " ".join(str(error).split())[:300] or type(error).__name__
