"""What one room of the gateway is made of, as the settings say: one module for each room. Nothing is decided here."""
