"""The client role: it keeps mappings at one gateway. `client.py` has the class; the other modules are its parts."""
