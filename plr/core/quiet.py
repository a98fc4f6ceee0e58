"""Keep the libraries' own chatter out of plr's output.

Warnings that concern the user are plr's to give; a banner, a progress bar for loading 20 tensors or a deprecation between two
libraries is not. `PLR_DEBUG=1` leaves everything as it comes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Generator

from plr.errors import MissingDependencyError

__all__ = ["import_gptqmodel", "quiet_libraries", "silenced"]


def quiet_libraries() -> None:
    """Set the levels and filters; call it before the heavy imports."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.environ.get("PLR_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*Couldn't import ops from torchao.*")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@contextlib.contextmanager
def silenced() -> Generator[None]:
    """Keep what Python code prints inside off the terminal, unless `PLR_DEBUG` is set. Errors pass as ever.

    A handler of the root logger that comes inside writes to what is thrown away, and would take every later warning there.
    """
    if os.environ.get("PLR_DEBUG"):
        yield
        return
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def import_gptqmodel() -> None:
    """Import GPTQModel if it is installed: PEFT does so whenever it attaches an adapter, with a banner.

    On machines with few cores its thread pool needs a number before the import. A library of its own points the hub cache
    elsewhere while it is imported; what the user set is put back.

    Raises:
        MissingDependencyError: it is installed and cannot be imported here. PEFT could not go on without it either.
    """
    if "gptqmodel" in sys.modules or importlib.util.find_spec("gptqmodel") is None:
        return
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 2)))
    before = {name: value for name, value in os.environ.items() if name.startswith("HF_")}
    try:
        with silenced():
            importlib.import_module("gptqmodel")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingDependencyError(
            f"gptqmodel is installed and cannot be imported: {words}",
            expected="gptqmodel and the torch it was built for",
            hint="pip uninstall gptqmodel: plr's own --method gptq does without it",
        ) from error
    finally:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            del os.environ[name]
        os.environ.update(before)
