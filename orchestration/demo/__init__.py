"""`tidemark demo`: the whole way of an event, shown once on real parts and proved."""
