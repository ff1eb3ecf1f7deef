"""The web console: its pages, the cookie of a signed-in browser, sign-in and registration."""
