"""Time travel: cores of any kind on a simulated network, in virtual time, without a socket or a sleep."""

from .diagram import Diagram
from .simulation import Clock, Link, Simulation
from .trace import Life, Moved, Packet, Received, Sent, Span, Told

__all__ = ["Clock", "Diagram", "Life", "Link", "Moved", "Packet", "Received", "Sent", "Simulation", "Span", "Told"]
