"""Changes to bytes: a model's name in a request, a field in an answer, one endpoint's form to another's. No I/O."""
