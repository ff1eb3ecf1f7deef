"""Changes to requests and results as bytes: a model's name, an added field, one endpoint's format to another's. No I/O."""
