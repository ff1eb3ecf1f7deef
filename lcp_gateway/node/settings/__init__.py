"""The settings of a node over lnd: flags, a TOML file, and the environment and the provider YAML of lcpd-grpcd."""
