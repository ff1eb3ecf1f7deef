"""The commands that ask for offers, routes and prices."""
