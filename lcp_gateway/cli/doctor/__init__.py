"""The command that checks an installation."""
