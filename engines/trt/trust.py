"""Which plans this user built, or trusts: noted by the hash of their headers.

A plan is native code, and the hash beside it is no better than who wrote both: a model folder may
come from a stranger with plans in it. So what this user builds is noted in the user's own cache
folder, and another plan is not run until its user says so (`--trust`), which notes it too. A note
is an empty file named by the hash. It holds for these very bytes, wherever they lie; who takes the
file away takes the trust back.
"""

from diffusion_rt.engines.artefact import remove_partials, writing
from diffusion_rt.engines.cache_folder import cache_folder, cache_path

NOTES = "trusted"


def is_trusted(header_sha256: bytes) -> bool:
    """Whether the plan under a header is noted, which holds the plan's own hash.

    Raises BadInput where others may write to the notes.
    """
    if not cache_path(NOTES).is_dir():
        return False
    return (cache_folder(NOTES) / header_sha256.hex()).is_file()


def trust(header_sha256: bytes) -> None:
    """Note the plan under a header. Raises BadInput where that cannot be written."""
    if is_trusted(header_sha256):
        return
    folder = cache_folder(NOTES)
    remove_partials(folder)
    with writing(folder / header_sha256.hex()):
        pass
