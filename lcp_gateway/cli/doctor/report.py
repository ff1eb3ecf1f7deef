"""The doctor's report: a line for each subject, whether it is in order, and advice where it is not."""

import typer

_NAME_COLUMNS = 14


class Report:
    """Prints each finding at once. ``healthy`` is False after the first failure."""

    def __init__(self) -> None:
        self.healthy = True

    def ok(self, name: str, text: str, advice: str = "") -> None:
        """Report a subject that is in order; possibly with advice."""
        self._print(typer.style("ok  ", fg="green"), name, text, advice)

    def fail(self, name: str, text: str, advice: str = "") -> None:
        """Report a subject that is not in order."""
        self.healthy = False
        self._print(typer.style("fail", fg="red"), name, text, advice)

    def warn(self, text: str) -> None:
        """Report a warning of the configuration."""
        self._print("warn", "", text, "")

    def _print(self, mark: str, name: str, text: str, advice: str) -> None:
        typer.echo(f"{mark}  {name:{_NAME_COLUMNS}} {text}")
        for line in advice.splitlines():
            typer.echo(f"      {'':{_NAME_COLUMNS}} {line}")
