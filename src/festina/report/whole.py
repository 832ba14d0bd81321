"""Writing binary files whole or not at all; for text there is `festina.strict.write_whole`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from festina.errors import FestinaError
from festina.strict import brief


def write_whole_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new, never a part.

    Raises:
        FestinaError: the folder is missing or not writable, or the disk is full, or the path is not one.
    """
    scratch: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            scratch = Path(stream.name)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        scratch.chmod(0o666 & ~umask)
        scratch.replace(path)
    except (OSError, ValueError) as error:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        raise FestinaError(f"cannot write {path}: {brief(error)}") from None
