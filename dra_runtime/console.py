"""What the four command lines share: one-line errors, exit codes, progress bars and tables."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, NoReturn, TypeVar

import click

from dra_runtime import __version__
from dra_runtime.errors import DraError

Item = TypeVar("Item")

FOUND_WANTING = 1  #: exit code of a check that ran and failed
UNUSABLE = 2  #: exit code of wrong use or unusable input


@dataclass(frozen=True)
class Later:
    """A command that is imported when it is used: neither ``--help`` nor another command waits for its libraries."""

    module: str
    attribute: str  #: the command's name in its module
    short_help: str
    extra: str  #: brings the libraries that it needs


class CommandGroup(click.Group):
    """A command line whose errors are one line on stderr; ``--debug`` shows the stack instead."""

    later: Mapping[str, Later] = MappingProxyType({})  #: commands by name, beside those that were added

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands."""
        return [*super().list_commands(ctx), *self.later]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported now if it wasn't before."""
        later = self.later.get(cmd_name)
        if later is None:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(_imported(later.module, later.extra), later.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands for ``--help``, and import none."""
        if not self.later:
            return super().format_commands(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, later.short_help) for name, later in self.later.items()])
        return None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and turn every failure into one line and an exit code."""
        kwargs["standalone_mode"] = False
        given = args[0] if args else kwargs.pop("args", None)
        argv = list(sys.argv[1:] if given is None else given)
        debug = "--debug" in argv
        argv = [a for a in argv if a != "--debug"]
        kwargs.setdefault("prog_name", self.name)
        try:
            code = super().main(argv, **kwargs)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(UNUSABLE)
        except click.ClickException as error:
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else self.name
            _fail(f"{error.format_message().rstrip('.')} (see: {where} --help)")
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(130)
        except DraError as error:
            if debug:
                raise
            _fail(str(error))
        except BrokenPipeError:  # the reader of our output (head, less) has left
            sys.stderr.close()
            sys.exit(0)
        except Exception as error:
            if debug:
                raise
            _fail(f"unexpected {type(error).__name__}: {error} (a bug: run again with --debug and report it)")
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())  # and nothing of it may steer the terminal: it may quote a file from elsewhere
    click.echo("error: " + "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line), err=True)
    sys.exit(UNUSABLE)


def start(module: str, extra: str) -> None:
    """Run the command line ``main`` of ``module``; where a library is missing, say which ``extra`` brings it."""
    _imported(module, extra).main()


def _imported(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", module.partition(".")[0]):
            raise  # not a library: our own file
        _fail(f"{missing} isn't installed, and this command needs it: pip install 'dra-toolkit[{extra}]'")


def command_group(name: str, help_text: str) -> CommandGroup:
    """Make the root of a command line called ``name``, with ``--version`` and ``--debug``."""
    group = CommandGroup(name=name, help=help_text, context_settings={"help_option_names": ["-h", "--help"]})
    group = click.version_option(__version__, prog_name=name)(group)
    return click.option("--debug", is_flag=True, help="Show the stack trace of an error.")(group)


@contextmanager
def progress(length: int, label: str, hidden: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar with the time left on stderr; nothing when ``hidden`` or when stderr is not a terminal.

    Yields a function that advances the bar by a number of steps; a second argument is shown behind the bar.
    """
    with click.progressbar(
        length=length,
        label=f"{label:<28}",
        show_eta=True,
        item_show_func=lambda note: note,
        file=sys.stderr,
        hidden=hidden or not sys.stderr.isatty(),
    ) as bar:
        yield bar.update


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Iterate over ``items`` under a progress bar."""
    with progress(len(items), label) as advance:
        for item in items:
            yield item
            advance(1)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out rows as a Markdown table: the first column left-aligned, the others right-aligned."""
    cells = [[str(c) for c in header], *([str(c) for c in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    align = [str.ljust, *([str.rjust] * (len(header) - 1))]
    lines = ["| " + " | ".join(f(c, w) for f, c, w in zip(align, row, widths, strict=True)) + " |" for row in cells]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])
