"""The steps that bring the tables from one version of the gateway to the next."""
