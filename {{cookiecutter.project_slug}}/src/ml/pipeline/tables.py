"""Reads sources and writes outputs: the edges of every stage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.errors import SourceError

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "package:"


def read_source(location: str) -> pd.DataFrame:
    """Return the table at a path, a URL or `package:NAME/FILE` (a file that an installed package carries).

    Raises SourceError when it is missing, truncated or not what its name says (.parquet, .csv, .csv.gz, .csv.zip).
    """
    import pandas as pd

    path = _packaged(location) if location.startswith(PACKAGE) else location
    parquet = str(path).endswith(".parquet")
    try:
        return pd.read_parquet(path) if parquet else pd.read_csv(path, low_memory=False)
    except FileNotFoundError:
        raise SourceError(f"{location} does not exist: correct data.sources in params.yaml") from None
    except (OSError, ValueError, EOFError, ImportError, *_archive_errors()) as error:
        kind = "Parquet" if parquet else "CSV"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(
            f"{location} is not readable as {kind} ({reason}): fetch it again, or correct data.sources in params.yaml"
        ) from None


class Sources(dict[str, str]):
    """The sources of params.yaml by name; asking for another raises SourceError."""

    def __missing__(self, name: str) -> str:
        raise SourceError(f"data.sources in params.yaml names no {name!r}; it has {', '.join(self) or 'none'}")


def read_output(path: Path) -> pd.DataFrame:
    """Return what a stage wrote; raise SourceError where it is missing or damaged."""
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({str(error).splitlines()[0]})"
        raise SourceError(f"{path} is {reason}: run make pipeline") from None


def _archive_errors() -> tuple[type[Exception], ...]:
    import zipfile
    import zlib

    return zipfile.BadZipFile, zlib.error


def _packaged(location: str) -> Path:
    package, _, name = location.removeprefix(PACKAGE).partition("/")
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise SourceError(f"{location}: the package {package} is not installed; run make setup") from None
    found = next((file for file in files if file.name == name), None)
    if found is None:
        raise SourceError(f"{location}: the package {package} carries no {name}; correct data.sources in params.yaml")
    return Path(found.locate())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` and move it there once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write the frame whole or not at all; its index is not kept."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write the frame whole or not at all; its index is not kept."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def write_json(value: Any, path: Path) -> None:
    """Write two-space JSON with a last newline, whole or not at all."""
    write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), path)


def write_bytes(value: bytes, path: Path) -> None:
    """Write the bytes whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(value)


def rounded(value: Any, digits: int = 6) -> Any:
    """Return nested numbers rounded, so that committed figures do not move with the last bit."""
    match value:
        case dict():
            return {key: rounded(item, digits) for key, item in value.items()}
        case list() | tuple():
            return [rounded(item, digits) for item in value]
        case bool() | int() | str() | None:
            return value
        case _:
            return round(float(value), digits)
