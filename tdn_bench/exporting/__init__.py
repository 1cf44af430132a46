"""A trained network as a file that other programs load: formats, Triton's model repository, the check, the JSON."""
