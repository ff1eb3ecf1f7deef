"""The settings of a node over lnd: read of flags, a TOML file, lcpd-grpcd's environment and its provider YAML."""
