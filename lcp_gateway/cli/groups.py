"""A command that has commands of its own."""

import typer

from lcp_gateway.cli.outcome import USAGE_ERROR


def command_group(purpose: str) -> typer.Typer:
    """Make one; without a command it prints its help."""
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=purpose
    )

    @app.callback(invoke_without_command=True)
    def _group(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit(USAGE_ERROR)

    return app
