"""What changes bytes: a model's name in a request, a field in an answer, one endpoint's form into another's. No I/O."""
