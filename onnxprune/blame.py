"""Whose fault it is: a model that does not run is refused as such, whatever it broke on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onnx import ModelProto

from onnxprune.backend.child import try_in_child
from onnxprune.errors import ModelError, PruneError, ToolDefect
from onnxprune.model.graph import Model
from onnxprune.model.storage import save
from onnxprune.shape.valid import CHECKS, refusal

# A child starts Python and ONNX Runtime, loads the model, and runs it once.
CHILD_SECONDS = 60.0


def refuse_crashes(
    model: Model, source: str | Path | ModelProto, custom_ops: Sequence[str] = ()
) -> None:
    """Refuse a model on which ONNX Runtime would take this process down.

    Only what the checker refuses is tried in another process: that takes a second, and valid
    models are not known to crash.

    Raises: ModelError: it crashes, hangs, or does not load.
    """
    refused = refusal(CHECKS["checker"], model)
    if refused is None:
        return
    trouble = _in_child(source, custom_ops)
    if trouble:
        raise ModelError(trouble, where=refused, hint="export the model again")


def _in_child(
    source: str | Path | ModelProto, custom_ops: Sequence[str], must_run: bool = False
) -> str | None:
    if not isinstance(source, ModelProto):
        return try_in_child(
            source, timeout_s=CHILD_SECONDS, custom_ops=custom_ops, must_run=must_run
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(Model(source), path)
        return _in_child(path, custom_ops, must_run)


@contextmanager
def blaming(source: str | Path | ModelProto, custom_ops: Sequence[str] = ()) -> Iterator[None]:
    """Lay what broke at the model's door where ONNX Runtime cannot load or run it either.

    Raises: ModelError: in the place of a defect or of an exception that nobody foresaw.
    """
    try:
        yield
    except ToolDefect as error:
        _accuse(source, custom_ops, error, must_run=False)
        raise
    except (PruneError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        _accuse(source, custom_ops, error, must_run=True)
        raise


def _accuse(
    source: str | Path | ModelProto, custom_ops: Sequence[str], error: Exception, *, must_run: bool
) -> None:
    trouble = _in_child(source, custom_ops, must_run)
    if trouble:
        sizes = "name sizes that it takes, --shape INPUT=1x3x224x224, or " if must_run else ""
        raise ModelError(trouble, hint=f"{sizes}export the model again") from error
