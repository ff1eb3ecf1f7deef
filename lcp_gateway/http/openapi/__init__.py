"""The description of the gateway's own routes (OpenAPI 3.1), made of the route table, the handlers and their declarations."""
