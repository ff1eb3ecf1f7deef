"""Telemetry: metrics and logs, with every name in one place. A leaf: it knows nothing of the rest of the gateway."""
