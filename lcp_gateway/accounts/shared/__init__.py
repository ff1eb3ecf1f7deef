"""What several gateways share through one Redis: results of repeated requests, and what happens while it is away."""
