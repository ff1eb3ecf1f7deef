"""The state that several gateways share through one Redis: results of repeated requests, and its outages."""
