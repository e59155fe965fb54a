"""The gateway role: it answers requests and keeps the mapping table. `gateway.py` has the class."""
