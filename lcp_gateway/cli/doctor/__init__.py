"""The command that examines a set-up."""
