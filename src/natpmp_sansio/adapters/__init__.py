"""The only place with sockets, clocks and event loops. Import the one you need; nothing imports them for you."""
