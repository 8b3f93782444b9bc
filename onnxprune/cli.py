"""The command line: arguments to `api`, errors to exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from onnxprune import __version__
from onnxprune.arguments import input_shapes, join_image_options, pairs, width_multiple
from onnxprune.errors import PruneError, ToolDefect, UsageError, did_you_mean

if TYPE_CHECKING:
    from onnxprune.opening import Progress

DEFECT, USAGE, GATE, INTERRUPTED = 1, 2, 3, 130
REPORT_DEFECT = "please report this, with the model and the options used"
TRACEBACK = "ONNXPRUNE_TRACEBACK"


class Commands(click.Group):
    """A group that suggests what a misspelt command or option may have meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UsageError(f"no command is named `{args[0]}`",
                             hint=did_you_mean(args[0], self.list_commands(ctx)))  # fmt: skip
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="onnxprune")
def commands() -> None:
    """Make an ONNX model smaller and faster by removing whole channels, and prove the result."""


# --- options that commands share ------------------------------------------------------------

Decorator = Callable[[Any], Any]


def _options(*options: Decorator) -> Decorator:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


MODEL = click.argument("model", type=click.Path())
OUTPUT = click.option("-o", "--out", required=True, type=click.Path(), help="Where to write.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what stands at OUT.")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
QUIET = click.option("--quiet", is_flag=True, help="No progress and no text.")
SEED = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is drawn."
)
WORKERS = click.option(
    "--workers", type=click.IntRange(min=0), default=0,
    help="Threads that measure damage; 0: as many as there are cores, at most 4.",
)  # fmt: skip
SHAPE = click.option(
    "--shape", multiple=True, metavar="INPUT=DIMS",
    help="Sizes that cost is counted at, such as image=1x3x224x224.",
)  # fmt: skip
CUSTOM_OPS = click.option(
    "--custom-ops", multiple=True, type=click.Path(),
    help="A library of custom operators; it is loaded and run.",
)  # fmt: skip
DATA = _options(
    click.option(
        "--data", help="Samples: .npz, a folder of arrays or images, or module:function."
    ),
    click.option("--limit", type=int, help="Take so many samples, drawn by the seed."),
    click.option("--image-size", metavar="HxW", help="Size that images are brought to."),
    click.option("--mean", metavar="A,B,C", help="Subtracted from images, per channel."),
    click.option("--std", metavar="A,B,C", help="Images are divided by it, per channel."),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Layout of images."),
)
COMPARISON = _options(
    click.option("--metric", default="", help="accuracy, top5, f1, auc, eer, mse, mae, r2, iou, "
                 "cosine, agreement, or module:function."),
    click.option("--higher-is-better/--lower-is-better", "higher_is_better", default=None,
                 help="The direction of a metric of your own."),
    click.option("--output", default="", help="The output that the metric reads."),
    click.option("--provider", default="cpu", show_default=True, help="Execution provider."),
    click.option("--threads", type=int, default=0, help="Threads; 0: as ONNX Runtime chooses."),
    click.option("--batch", type=int, default=1, show_default=True, help="Batch size of timing."),
    click.option("--latency-seconds", "latency_s", type=float, default=5.0, show_default=True,
                 help="Time limit of the latency measurement; 0 leaves it out."),
)  # fmt: skip


# --- commands -----------------------------------------------------------------------------


@commands.command()
@MODEL
@click.option("-o", "--out", type=click.Path(), help="Where to write the pruned model.")
@DATA
@click.option("--eval", "evaluation", help="Other samples for the figures shown, as --data.")
@click.option("--target", multiple=True, metavar="COST=SHARE",
              help="Keep at most this share of macs, params or bytes.")  # fmt: skip
@click.option("--max-drop", type=float,
              help="Go on while the metric drops no more; --target is the least.")  # fmt: skip
@click.option("--score", help="How channels are ranked; `onnxprune passes` lists score-*.")
@click.option("--allocate", type=click.Choice(["auto", "uniform", "global", "curves"]),
              default="auto", show_default=True,
              help="How widths are shared out; auto: curves with samples, else global.")
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True,
              help="Cut in rounds, and measure again what each left.")  # fmt: skip
@click.option("--curves", type=click.Path(),
              help="What `onnxprune sensitivity` wrote; nothing is measured.")  # fmt: skip
@click.option("--exact", is_flag=True, help="Cut exact Dims only.")
@click.option("--approximate", is_flag=True,
              help="Cut Dims under normalisations over channels, without data too.")  # fmt: skip
@click.option("--exact-only", is_flag=True, help="Lossless clean-ups only; no budget.")
@click.option("--repair/--no-repair", default=True, show_default=True,
              help="Refit what is left, on --data or on seeded inputs.")  # fmt: skip
@click.option("--skip", multiple=True, metavar="PATTERN", help="Leave these alone.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Cut these only.")
@click.option("--keep", multiple=True, metavar="PATTERN=N",
              help="Channels a row (or, up to 1, their share) to keep.")  # fmt: skip
@click.option("--multiple", default="auto", show_default=True, help="Width multiple.")
@SHAPE
@COMPARISON
@CUSTOM_OPS
@click.option("--plan", "plan_path", type=click.Path(), help="Where to write the plan.")
@click.option("--resume", is_flag=True,
              help="Go on where a run with --max-drop or --rounds was interrupted.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print plan and cost; cut and write nothing.")
@WORKERS
@SEED
@JSON
@QUIET
@OVERWRITE
def prune(**given: Any) -> None:
    """Remove channels from MODEL and write the result to OUT, with its plan."""
    from onnxprune import api

    if not given["out"] and not given["dry_run"]:
        raise UsageError("nothing says where to write", hint="give -o OUT, or --dry-run")
    given["target"] = pairs(given["target"], "--target")
    given["keep"] = pairs(given["keep"], "--keep")
    given["multiple"] = width_multiple(given["multiple"])
    if given["score"] is None:
        del given["score"]
    _run(api.prune, given)


@commands.command()
@MODEL
@OUTPUT
@DATA
@SHAPE
@CUSTOM_OPS
@WORKERS
@SEED
@JSON
@QUIET
@OVERWRITE
def sensitivity(**given: Any) -> None:
    """Measure what MODEL loses with each Dim; `prune --curves OUT` then cuts to any budget."""
    from onnxprune import api

    _run(api.sensitivity, given)


@commands.command()
@MODEL
@DATA
@click.option("--features", is_flag=True,
              help="Rank columns and channels of inputs by what they do to outputs.")  # fmt: skip
@SHAPE
@CUSTOM_OPS
@SEED
@JSON
@QUIET
def inspect(**given: Any) -> None:
    """Show what could be cut in MODEL, what not, and why."""
    from onnxprune import api

    _run(api.inspect, given)


@commands.command()
@click.argument("reference", type=click.Path())
@click.argument("candidate", type=click.Path())
@DATA
@SHAPE
@COMPARISON
@click.option("--max-drop", type=float, help="Gate: the metric may lose so much.")
@click.option("--min-agreement", type=float, help="Gate: share of equal decisions.")
@click.option("--max-error", type=float, help="Gate: largest relative error of an output.")
@click.option("--min-speedup", type=float, help="Gate: latency ratio.")
@CUSTOM_OPS
@SEED
@JSON
@QUIET
def verify(**given: Any) -> None:
    """Compare CANDIDATE with REFERENCE: structure, outputs, metric, latency."""
    from onnxprune import api

    _run(api.verify, given)


@commands.command()
@MODEL
@OUTPUT
@OVERWRITE
@JSON
@QUIET
def normalize(**given: Any) -> None:
    """Write the form of MODEL that plans refer to: same interface, same outputs."""
    from onnxprune import api

    _run(api.normalize, given)


@commands.command()
@MODEL
@click.argument("plan", type=click.Path(), required=False)
@OUTPUT
@click.option("--weights", type=click.Path(),
              help="Cut this checkpoint (.npz, .safetensors); MODEL is the plan.")  # fmt: skip
@OVERWRITE
@JSON
@QUIET
def apply(**given: Any) -> None:
    """Cut MODEL as PLAN says: the same bytes as the `prune` that wrote the plan."""
    from onnxprune import api

    _run(api.apply, given)


@commands.command()
@JSON
def passes(as_json: bool) -> None:
    """List the passes that are installed, with their options."""
    from onnxprune import api

    _print(api.list_passes(), as_json)


@commands.command()
@JSON
def ops(as_json: bool) -> None:
    """List the operators that have a rule."""
    from onnxprune import api

    _print(api.list_ops(), as_json)


# --- running --------------------------------------------------------------------------------


def _run(function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Call the function of a command and print what it found; a failed gate exits with 3."""
    as_json, quiet = given.pop("as_json"), given.pop("quiet")
    if "shape" in given:
        given["shape"] = input_shapes(given["shape"])
    join_image_options(given)
    with _progress(quiet or as_json) as progress:
        result = function(**given, progress=progress)
    if not quiet or as_json:
        _print(result, as_json)
    if result.failed_gates:
        sys.exit(GATE)


def _print(result: Any, as_json: bool) -> None:
    click.echo(json.dumps(result.json(), indent=2, allow_nan=False) if as_json else result.report())


def _progress(quiet: bool) -> AbstractContextManager[Progress | None]:
    """A line on standard error that names the pass at work; nothing where nobody looks."""
    if quiet or not sys.stderr.isatty():
        return nullcontext(None)
    from onnxprune.report.text import progress

    return progress()


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        commands.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(USAGE, _click_message(error))
    except PruneError as error:
        if isinstance(error, ToolDefect) and not error.hint:
            error.hint = REPORT_DEFECT
        _fail(error.exit_code, str(error))
    except (KeyboardInterrupt, click.Abort):
        _fail(INTERRUPTED, "interrupted; no file is half-written")
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.exit(0)
    except OSError as error:
        _fail(USAGE, f"cannot write the output: {error.strerror or error}")
    except MemoryError:
        _fail(USAGE, "not enough memory for this model")
    except RecursionError:
        _fail(USAGE, "the model is nested too deeply")
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        first = (str(error).splitlines() or [""])[0]
        what = f"unexpected {type(error).__name__}: {first}"
        _fail(DEFECT, f"{what}\n  hint: {REPORT_DEFECT} ({TRACEBACK}=1 shows where)")


def _fail(code: int, message: str) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _click_message(error: click.ClickException) -> str:
    """A usage error in this tool's form."""
    text = error.format_message().rstrip(".")
    text = text[:1].lower() + text[1:]
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        params = error.ctx.command.params
        known = [o for p in params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
        hint = did_you_mean(error.option_name, known)
        return f"no option `{error.option_name}`\n  hint: {hint}"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f"\n  hint: {error.ctx.command_path} --help"
    return text


if __name__ == "__main__":
    main()
