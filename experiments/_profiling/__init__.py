"""How time and memory are measured: sides that run in turn, peers of other packages, costs of a table's rows."""
