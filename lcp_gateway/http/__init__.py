"""The HTTP API: OpenAI's routes and the gateway's own. Payment decisions are taken in purchase/."""
