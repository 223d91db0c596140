"""What can go wrong on a device, told apart by what the caller can do about it.

The folders above turn these into their own two kinds: NoDriver and OutOfMemory, which the user can
mend by asking for less or for something else, and all others. Every message is one line.
"""


class DeviceError(RuntimeError):
    """A call of the driver failed; `code` is the driver's number, None where it has none."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class NoDriver(DeviceError):
    """No driver, one too old, or no device behind it: another engine may still do."""


class OutOfMemory(DeviceError):
    """The device or pinned host memory is spent; the context lives on, smaller requests may do."""


class DeviceLost(DeviceError):
    """The context is broken for good (a sticky error): only a new process can use the device."""


class BadImage(DeviceError):
    """The driver refuses a compiled kernel: made for another chip, or by too new a compiler."""


class Misuse(DeviceError):
    """A rule of the driver was broken: order of calls, lifetime, alignment. A bug of the caller."""


_NO_DRIVER = {
    3: "call it after the driver is initialised",
    34: "a stub libcuda.so comes before the driver's own: take it off LD_LIBRARY_PATH",
    36: "update the NVIDIA driver",
    46: "another process holds the device in exclusive mode: end it, or choose another device",
    100: "no NVIDIA GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    101: "there is no device of that number: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    802: "the NVSwitch fabric is not ready: start nvidia-fabricmanager",
    803: "driver and its libraries are of different versions: reboot, or reinstall the driver",
    804: "the forward-compatibility libraries do not serve this GPU: update the driver itself",
}
_BAD_IMAGE = {200, 209, 218, 221, 222, 223, 300}
_LOST = {4, 214, 220, 226, 700, 702, 709, 710, *range(714, 720), 721}
_MISUSE = {1, 201, 400, 401, 701, 720, *range(900, 909), 910, 912, 913}


def classify(code: int, name: str, text: str, what: str) -> DeviceError:
    """The error for a driver's answer: `what` was asked, `name` and `text` are the driver's words.

    The message is one line: what was asked, what came back, the way out.
    """
    said = f"{what}: {name} ({code}), {text}"
    if code in _NO_DRIVER:
        return NoDriver(f"{said}; {_NO_DRIVER[code]}", code)
    if code == 2:
        way_out = "free device memory, or ask for a smaller size, batch or memory budget"
        return OutOfMemory(f"{said}; {way_out}", code)
    if code in _LOST:
        return DeviceLost(f"{said}; the device is lost to this process: start it again", code)
    if code in _BAD_IMAGE:
        way_out = "compile the kernels anew for this GPU, or update the NVIDIA driver"
        return BadImage(f"{said}; {way_out}", code)
    if code in _MISUSE:
        return Misuse(f"{said}; this is a bug of the caller, please report it", code)
    return DeviceError(f"{said}; see `nvidia-smi` and the kernel log for the cause", code)
