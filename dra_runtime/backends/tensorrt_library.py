"""tensorrt and tensorrt_rtx: importing them, and opening plans with them. The two share one Python interface."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from dra_runtime.engine_host import TENSORRT, TENSORRT_RTX
from dra_runtime.errors import BackendError, EngineError

OLDEST = {TENSORRT: (10, 13), TENSORRT_RTX: (1, 7)}  #: versions whose interface is known
_MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}


@dataclass(frozen=True)
class Library:
    """One of the libraries, imported: ``name`` is its backend's."""

    name: str
    module: Any
    version: str


def import_library(name: str) -> Library:
    """Import a library by its backend's name.

    Raises
    ------
    BackendError
        It isn't installed, or is too old.
    """
    try:
        module = importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise BackendError(f"{name} can't be imported ({error}); pip install 'dra-toolkit[{name}]'") from error
    library = Library(name, module, str(module.__version__))
    if version_numbers(library.version) < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise BackendError(f"{name} is {library.version}; expected {oldest} or newer: pip install -U {name}")
    return library


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version starts with."""
    return tuple(int(part) for part in re.findall(r"(?:^|\.)([0-9]+)", version))


def engine_from_plan(library: Library, plan: Any, holds_code: bool) -> tuple[Any, Any]:
    """Open a plan on the GPU; return the engine, and what must be kept as long as it.

    ``holds_code`` lets the library run the code that version-compatible plans bring with them.

    Raises
    ------
    EngineError
        The library can't open it here.
    """
    logger = quiet_logger(library.module)
    runtime = library.module.Runtime(logger)
    if holds_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"{library.name} {library.version} can't open the plan ({first_error(logger)}); build it again"
        )
    return engine, (runtime, logger)


def quiet_logger(module: Any) -> Any:
    """Return a logger for the library that keeps the latest errors for our own messages, and says nothing."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors = [*self.errors[-9:], " ".join(str(message).split())[:300]]

    return Logger()


def first_error(logger: Any) -> str:
    """Return the first error that a `quiet_logger` keeps: those that follow follow from it."""
    return logger.errors[0] if logger.errors else "it says no reason"
