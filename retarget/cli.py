"""The command line: a command parses, calls and prints. Heavy imports stand inside the commands.

Data goes to stdout, words to stderr. Exit codes: 0 done, 1 the user's input or environment, 2 usage, 3 a bug of
retarget's, 4 a gate failed, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from retarget.errors import RetargetError
from retarget.processor import cores

if TYPE_CHECKING:
    from retarget.engine import Limits
    from retarget.plan import Invocation
    from retarget.recipe import Recipe
    from retarget.store import Store

app = typer.Typer(
    name="retarget",
    help="Trained model in, verified deployable artifacts out.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache = typer.Typer(help="The store of artifacts.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(cache, name="cache")


def _path(text: str) -> Path:
    """A shell expands ``~`` only where a word begins with it, so not in ``--store=~/store``."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's raises for the name of no user


ModelArgument = Annotated[Path, typer.Argument(parser=_path, help="A file or folder, or FILE,FILE.", metavar="MODEL")]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON on stdout.")]
StoreOption = Annotated[Path | None, typer.Option("--store", parser=_path, help="Folder of the store.", metavar="DIR")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", parser=_path, help="Folder for the result.", metavar="DIR")
]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Steps side by side; default: one a core.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of each runtime; default: one a core.")]
Memory = Annotated[str | None, typer.Option(help="Limit a step's anonymous memory, as in 4GB.", metavar="SIZE")]
Timeout = Annotated[float | None, typer.Option(min=0.1, help="Limit a step's time.", metavar="SECONDS")]
Trust = Annotated[bool, typer.Option("--trust", help="Allow code inside the model file to run.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail when a pass has to be dropped.")]
Optimize = Annotated[str | None, typer.Option(help="Preset: none, default or aggressive.", metavar="PRESET")]
NoBench = Annotated[bool, typer.Option("--no-bench", help="Leave out the measurement of latency.")]
Baseline = Annotated[
    Path | None, typer.Option(parser=_path, help="report.json to compare with.", metavar="REPORT.json")
]
Shape = Annotated[list[str], typer.Option("--shape", help="Sizes of a dimension.", metavar="N=MIN:OPT:MAX")]
Input = Annotated[list[str], typer.Option("--input", help="An input of the model.", metavar="NAME=DTYPE[SHAPE]")]
Targets = Annotated[list[str], typer.Option("--to", help="Target; repeat for several.", metavar="TARGET")]
OutputNames = Annotated[list[str], typer.Option("--output-name", help="Names for the outputs, in order.")]
Factory = Annotated[str | None, typer.Option(help="Code that builds the module.", metavar="FILE.py:FUNCTION")]
Signature = Annotated[str | None, typer.Option(help="Which function of a SavedModel.", metavar="NAME")]
IoLayout = Annotated[str | None, typer.Option(help="Axes of images in and out: nchw or nhwc.", metavar="LAYOUT")]
Normalization = Annotated[
    str | None,
    typer.Option("--normalize", help="What the model is to do to raw pixels, as in {scale: 1/255}.", metavar="BLOCK"),
]
Interpreter = Annotated[
    Path | None,
    typer.Option(
        "--python", parser=_path, help="Interpreter that has the model's framework, if not this.", metavar="PYTHON"
    ),
]
ParityData = Annotated[str | None, typer.Option("--data", help="Samples for parity.", metavar="DATA")]
CalibrationData = Annotated[str | None, typer.Option("--calibration", help="Samples for calibration.", metavar="DATA")]
Preprocessing = Annotated[
    str | None,
    typer.Option("--preprocess", help="How images become inputs, as in {resize: 256, scale: 1/255}.", metavar="BLOCK"),
]

INTERRUPTED = 130


@app.command()
def convert(
    model: ModelArgument,
    to: Targets,
    precision: Annotated[list[str], typer.Option(help="fp32, fp16; repeat for several.")] = ["fp32"],  # noqa: B006
    inputs: Input = [],  # noqa: B006 - Typer copies defaults
    outputs: OutputNames = [],  # noqa: B006
    shapes: Shape = [],  # noqa: B006
    factory: Factory = None,
    signature: Signature = None,
    io_layout: IoLayout = None,
    normalize: Normalization = None,
    python: Interpreter = None,
    data: ParityData = None,
    calibration: CalibrationData = None,
    preprocess: Preprocessing = None,
    output: Output = None,
    optimize: Optimize = None,
    trust: Trust = False,
    strict: Strict = False,
    no_bench: NoBench = False,
    jobs: Jobs = None,
    threads: Threads = None,
    memory: Memory = None,
    timeout: Timeout = None,
    store: StoreOption = None,
    json: Json = False,
) -> None:
    """Convert one model, without a recipe; the recipe that it stands for is written beside the result."""
    from retarget import user_config
    from retarget.plan import Invocation
    from retarget.quick import recipe_for

    wanted = recipe_for(
        model,
        targets=to,
        precisions=precision,
        inputs=inputs,
        outputs=outputs,
        shapes=shapes,
        factory=factory,
        signature=signature,
        io_layout=io_layout,
        normalize=normalize,
        python=python,
        data=data,
        calibration=calibration,
        preprocess=preprocess,
        optimize=optimize,
        trust=trust,
    )
    invocation = Invocation(
        strict=strict, threads=threads or cores(), bench=not no_bench, toolchains=user_config.read().toolchains
    )
    _build(wanted, output, invocation, jobs, memory, timeout, store, None, None, json)


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(parser=_path, help="The recipe.", metavar="RECIPE.yaml")],
    output: Output = None,
    only: Annotated[list[str], typer.Option(help="Build only this.", metavar="TARGET[/VARIANT]")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps and what is cached; run nothing.")] = False,
    locked: Annotated[bool, typer.Option("--locked", help="Refuse what differs from recipe.lock.")] = False,
    optimize: Optimize = None,
    baseline: Baseline = None,
    trust: Trust = False,
    strict: Strict = False,
    no_bench: NoBench = False,
    jobs: Jobs = None,
    threads: Threads = None,
    memory: Memory = None,
    timeout: Timeout = None,
    store: StoreOption = None,
    json: Json = False,
) -> None:
    """Build everything that a recipe asks for, and check it."""
    import msgspec

    from retarget import lock, user_config
    from retarget import recipe as recipes
    from retarget.plan import Invocation
    from retarget.quick import preset

    wanted = recipes.load(recipe)
    if trust:
        wanted = msgspec.structs.replace(wanted, model=msgspec.structs.replace(wanted.model, trust=True))
    if optimize is not None:
        wanted = msgspec.structs.replace(wanted, optimize=preset(optimize))
    invocation = Invocation(
        strict=strict,
        only=tuple(only),
        threads=threads or cores(),
        bench=not no_bench,
        toolchains=user_config.read().toolchains,
    )
    lock_file = recipe.parent / lock.NAME if locked else None
    if dry_run:
        _dry_run(wanted, invocation, store, lock_file, json)
        return
    _build(wanted, output, invocation, jobs, memory, timeout, store, lock_file, baseline, json)


@app.command()
def init(
    model: ModelArgument,
    inputs: Input = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", parser=_path, help="File to write; default: stdout.", metavar="FILE"),
    ] = None,
) -> None:
    """Write a starter recipe: inputs and shapes filled in, a comment beside each key."""
    from retarget.quick import starter_for

    text = starter_for(model, inputs, (output.parent if output else Path.cwd()).absolute())
    if output is None:
        sys.stdout.write(text)
    else:
        try:
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise RetargetError(f"{output}: is there already", "give another file with -o") from None
        typer.echo(f"wrote {output}: `retarget build {output}` builds it", err=True)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(parser=_path, help="Any model or artifact.", metavar="FILE")],
    json: Json = False,
) -> None:
    """Show what is in a model or an artifact: inputs, outputs, ops, size, and the precision really in it."""
    from retarget import inspection, tables
    from retarget.quick import files_of

    tables.show_inspection(inspection.inspect(*files_of(file)), json=json)


@app.command()
def check(
    model: ModelArgument,
    to: Targets,
    precision: Annotated[list[str], typer.Option(help="Repeat for several; int8 wants --calibration.")] = ["fp32"],  # noqa: B006
    inputs: Input = [],  # noqa: B006
    outputs: OutputNames = [],  # noqa: B006
    shapes: Shape = [],  # noqa: B006
    factory: Factory = None,
    signature: Signature = None,
    io_layout: IoLayout = None,
    normalize: Normalization = None,
    python: Interpreter = None,
    data: ParityData = None,
    calibration: CalibrationData = None,
    preprocess: Preprocessing = None,
    optimize: Optimize = None,
    trust: Trust = False,
    strict: Strict = False,
    jobs: Jobs = None,
    memory: Memory = None,
    timeout: Timeout = None,
    store: StoreOption = None,
    json: Json = False,
) -> None:
    """Show every node that a target cannot take, with the reason and what to do. Nothing is built.

    Ends with 0 where all targets take the model, else with 1. A `convert` with the same options finds the model read
    and optimized.
    """
    from retarget import preflight, tables, terminal, user_config
    from retarget.engine import terminable
    from retarget.plan import Invocation
    from retarget.quick import recipe_for

    wanted = recipe_for(
        model,
        targets=to,
        precisions=precision,
        inputs=inputs,
        outputs=outputs,
        shapes=shapes,
        factory=factory,
        signature=signature,
        io_layout=io_layout,
        normalize=normalize,
        python=python,
        data=data,
        calibration=calibration,
        preprocess=preprocess,
        optimize=optimize,
        trust=trust,
    )
    with terminable():
        checked = preflight.check(
            wanted,
            _store(store),
            invocation=Invocation(strict=strict, toolchains=user_config.read().toolchains),
            limits=_limits(memory, timeout),
            jobs=jobs or cores(),
            display=terminal.Display,
        )
    tables.show_answers(checked.answers, json=json)
    raise typer.Exit(checked.exit_code)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(parser=_path, help="The folder that a build left.", metavar="DIR")],
    baseline: Baseline = None,
    json: Json = False,
) -> None:
    """Write report.html, report.md and junit.xml again from report.json, with the difference from a baseline."""
    import msgspec

    from retarget import report as reports
    from retarget import terminal

    read = reports.read(folder / reports.FILE)
    if baseline is not None:
        read = msgspec.structs.replace(read, baseline=reports.difference(read, reports.read(baseline)))
    reports.write(read, folder)
    if json:
        sys.stdout.write(reports.encode(read).decode())
    else:
        terminal.show(read, place=str(folder / "report.html"))


@app.command()
def doctor(json: Json = False) -> None:
    """Show each toolchain: its version, what it can do here, and the command that adds it."""
    from retarget import doctor as examination
    from retarget import tables, user_config

    tables.show(examination.examine(user_config.read().toolchains), json=json)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="frontends, passes or targets.")],
    json: Json = False,
) -> None:
    """List the frontends, the passes or the targets."""
    from retarget import listing, tables

    tables.show(listing.rows(what), json=json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes."""
    from retarget import recipe_schema

    sys.stdout.write(recipe_schema.text())


@cache.command("ls")
def cache_ls(store: StoreOption = None, json: Json = False) -> None:
    """List the artifacts in the store, the one that was used longest ago first."""
    from retarget import listing, tables

    entries = _store(store).entries()
    tables.show(entries if json else listing.cached(entries), json=json)


@cache.command("verify")
def cache_verify(store: StoreOption = None, json: Json = False) -> None:
    """Check every digest; a damaged artifact is removed, and the next build makes it again."""
    from retarget import tables

    damages = _store(store).verify()
    tables.show(damages, json=json)
    typer.echo(f"{len(damages)} damaged" if damages else "all artifacts are whole", err=True)
    raise typer.Exit(4 if damages else 0)


@cache.command("gc")
def cache_gc(
    max_size: Annotated[str, typer.Option(help="How much may stay, as in 10GB.", metavar="SIZE")] = "10GB",
    store: StoreOption = None,
    json: Json = False,
) -> None:
    """Remove the artifacts that were used longest ago, until the rest is small enough; running builds keep theirs."""
    from retarget import listing, tables
    from retarget.sizes import parse_size

    removed = _store(store).gc(parse_size(max_size))
    tables.show(removed if json else listing.cached(removed), json=json)
    typer.echo(f"removed {len(removed)} artifacts", err=True)


# ---- the end of every command


def main() -> None:
    """The entry point: every exception becomes a line, a hint and an exit code."""
    from retarget.errors import Terminated

    _open_standard_streams()
    try:
        _check_names()
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # So Typer ends on Ctrl-C, without a word.
            _end("interrupted", INTERRUPTED)
        raise
    except RetargetError as error:
        _fail(str(error), error.exit_code)
    except Terminated:
        _end("terminated", 143)
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name.partition(".")[0] == "retarget":
            _report_bug(error)
        # The toolchains are looked for before they are used: this is one of retarget's own dependencies.
        _fail(
            str(RetargetError(f"{name} is not installed", "pip install retarget; `retarget doctor` shows what is here"))
        )
    except OSError as error:
        what = error.strerror or str(error)
        place = f"{error.filename}: {what}" if error.filename is not None else what
        _fail(str(RetargetError(place, "check that the place is there, may be written and has space")))
    except Exception as error:  # noqa: BLE001 - the last resort: a bug of retarget's own
        _report_bug(error)


def _open_standard_streams() -> None:
    """Whoever closed descriptors 0 to 2: no file of ours may become one of them, and ``sys.stdout`` be none."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(spare, True)
    os.close(spare)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))


def _check_names() -> None:
    """Raise ``RetargetError`` for names that neither a recipe nor a report could hold: they are Unicode text."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise RetargetError("the current folder is not there any more", "change to another one") from None
    for name in (here, *sys.argv[1:]):
        if any("\udc80" <= character <= "\udcff" for character in name):
            raise RetargetError(
                f"{name!a}: is not text in the encoding {sys.getfilesystemencoding()}",
                "rename the file, or set PYTHONUTF8=1 if names are UTF-8 here",
            )


def _end(word: str, code: int) -> NoReturn:
    """After a signal: another one changes nothing any more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    typer.echo(word, err=True)
    sys.exit(code)


def _fail(words: str, code: int = 1) -> NoReturn:
    typer.echo(f"error: {words}", err=True)
    sys.exit(code)


def _report_bug(error: Exception) -> NoReturn:
    import platform
    import tempfile
    import traceback

    from retarget import __version__

    story = (
        f"retarget {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}"
    )
    try:
        with tempfile.NamedTemporaryFile("wb", prefix="retarget-", suffix=".log", delete=False) as log:
            log.write(story.encode("utf-8", "backslashreplace"))
        hint = f"report it with the log {log.name}"
    except OSError:
        hint = f"report it with what follows, for which there is no space on the disk\n\n{story}"
    _fail(str(RetargetError(f"a bug in retarget: {type(error).__name__}: {error}", hint)), 3)


# ---- what several commands share


def _build(
    wanted: Recipe,
    output: Path | None,
    invocation: Invocation,
    jobs: int | None,
    memory: str | None,
    timeout: float | None,
    store: Path | None,
    locked: Path | None,
    baseline: Path | None,
    json: bool,
) -> NoReturn:
    from retarget import report, terminal
    from retarget.build import build as run
    from retarget.engine import terminable

    folder = output or Path("build") / wanted.name
    before = report.read(baseline) if baseline else None
    with terminable():
        built = run(
            wanted,
            _store(store),
            folder,
            invocation=invocation,
            limits=_limits(memory, timeout),
            jobs=jobs or cores(),
            locked=locked,
            baseline=before,
            display=terminal.Display,
        )
    if json:
        sys.stdout.write(report.encode(built.report).decode())
    else:
        terminal.show(built.report, place=str(folder / "report.html"))
    raise typer.Exit(built.exit_code)


def _limits(memory: str | None, timeout: float | None) -> Limits:
    from retarget.engine import Limits
    from retarget.sizes import parse_size

    return Limits(memory_bytes=parse_size(memory) if memory else None, seconds=timeout)


def _dry_run(wanted: Recipe, invocation: Invocation, store: Path | None, locked: Path | None, json: bool) -> None:
    from retarget import lock, tables
    from retarget.plan import make

    opened = _store(store)
    plan = make(wanted, opened, invocation)
    if locked is not None:
        lock.check(locked, lock.make(wanted, plan.inputs, plan.versions))
    rows = [
        tables.Planned(step.id, step.kind, step.toolchain, "cached" if opened.get(step.key) else "to run", step.key)
        for step in plan.steps
    ]
    tables.show(rows, json=json)
    for one in plan.left_out:
        typer.echo(f"{one.target}/{one.variant} is left out: {one.reason}; {one.hint}", err=True)


def _store(option: Path | None) -> Store:
    from retarget import user_config
    from retarget.store import Store, default_root

    return Store(default_root(option, user_config.read().store))


if __name__ == "__main__":
    main()
