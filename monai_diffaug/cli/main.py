"""The command's frame: one app, one place where errors become one line, one way to print JSON.

Command modules import `app` from here and decorate their functions. Importing a command module must stay cheap (torch,
MONAI and diffusers belong inside the functions), so that help comes at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

__all__ = ["app", "as_json", "note"]


def note(kind: str, text: str, color: str) -> None:
    """One line on stderr, its first word in color where a terminal shows it."""
    word = f"\033[{color}m{kind}:\033[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else f"{kind}:"
    print(word, " ".join(text.split()), file=sys.stderr)


def as_json(data: Any) -> None:
    """Print data as JSON on stdout; numbers that JSON has no word for become null."""
    print(json.dumps(_finite(data), indent=2, default=str))


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(k): _finite(v) for k, v in data.items()}
    return [_finite(v) for v in data] if isinstance(data, list | tuple) else data


def _as_written(text: str | None) -> str | None:
    """Mark paragraphs with indented lines (examples) so that help does not refill them."""
    if text is None:
        return None
    parts = text.split("\n\n")
    return "\n\n".join(f"\b\n{p}" if "\n  " in p and not p.startswith("\b") else p for p in parts)


class OneLine(TyperGroup):
    """Runs a command; what the user can mend becomes one line, what we must mend keeps its traceback.

    Exit codes: 0 done, 1 the job failed or faults were found, 2 the command line is wrong, 130 stopped by the user.
    """

    debug = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.help = _as_written(self.help)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name, its examples shown line by line."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.help = _as_written(command.help)
        return command

    def main(  # type: ignore[override]  # what is not looked at is passed on
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run a command line; with ``standalone_mode`` (as the entry point does) end in ``sys.exit``."""
        self.debug = bool(os.environ.get("DIFFAUG_DEBUG"))
        with warnings.catch_warnings():
            warnings.showwarning = self._warn
            try:
                result = super().main(args=args, standalone_mode=False, **extra)
            except (KeyboardInterrupt, typer.Abort):
                note("stopped", "run the same command again to go on", "33")
                result = 130
            except Exception as error:
                result = self._failed(error)
        if standalone_mode:
            sys.exit(result if isinstance(result, int) else 0)
        return result

    def _failed(self, error: Exception) -> int:
        """Say what went wrong; returns the exit code, or raises again what no user can mend."""
        if self.debug:
            traceback.print_exc()
        usage = getattr(error, "format_message", None)
        if usage is not None:  # the command line itself
            context = getattr(error, "ctx", None)
            where = context.command_path if context is not None else "diffaug"
            note("error", f"{usage().rstrip('.').replace('Value error, ', '')}: '{where} --help' shows how", "31")
            return int(getattr(error, "exit_code", 2))
        if isinstance(error, OSError) and error.filename is not None:
            what = f"{error.filename}: {error.strerror or type(error).__name__}"
            note("error", f"{what}; check the path, its permissions and the free space", "31")
            return 1
        from monai_diffaug.types import DiffAugError  # torch by now is there, or the error is not ours

        if isinstance(error, DiffAugError):
            note("error", str(error), "31")
            return 1
        if self.debug:
            return 1
        raise error

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Our warnings as one line; other libraries' only with ``--debug``."""
        if self.debug or "monai_diffaug" in filename:
            note("warning", str(message), "33")


app = typer.Typer(
    name="diffaug",
    cls=OneLine,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"monai-diffaug {metadata.version('monai-diffaug')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def diffaug(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and other libraries' warnings.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Synthetic medical images from real ones, by published diffusion methods.

    Start here:
      diffaug list                                     the methods
      diffaug where sdedit                             one of them, in detail
      diffaug expand brain_mri -m sdedit -b brain_mri --out OUT
                                                       more scans from real ones
      diffaug doctor                                   what this machine can do
    """
    if isinstance(context.command, OneLine) and debug:
        context.command.debug = True
    if context.invoked_subcommand is None:
        print(context.get_help())
