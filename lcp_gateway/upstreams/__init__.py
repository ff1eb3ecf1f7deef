"""One adapter for each source of providers; each implements the ``Upstream`` of purchases."""
