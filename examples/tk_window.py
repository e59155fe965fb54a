"""A window that says where a port can be reached. The port is open as long as the window is.

python examples/tk_window.py 192.168.1.1 8080
"""

from __future__ import annotations

import math
import sys
import tkinter

from natpmp_sansio import Protocol
from natpmp_sansio.adapters.blocking import BlockingClient, open_client


class PortWindow(tkinter.Tk):
    """Tk's loop waits for what the client waits for, and there is no thread."""

    def __init__(self, client: BlockingClient, port: int) -> None:
        super().__init__()
        self.title(f"port {port}")
        self.text = tkinter.StringVar(self, "asking the gateway ...")
        tkinter.Label(self, textvariable=self.text, padx=40, pady=20).pack()
        self.keeper = client
        self.happened = client.events()
        self.alarm = ""
        client.keep_port(Protocol.TCP, port)
        self.tk.createfilehandler(client, tkinter.READABLE, self.process)  # on Windows: look every so often
        self.process()

    def process(self, *_: object) -> None:
        """Something can be read, or the time has come."""
        self.keeper.process()
        for event in self.happened.pending():
            self.text.set(event.describe())
        if self.alarm:
            self.after_cancel(self.alarm)
        left = self.keeper.timeout()
        self.alarm = "" if left is None else self.after(math.ceil(left * 1000), self.process)

    def destroy(self) -> None:
        self.tk.deletefilehandler(self.keeper)
        super().destroy()


if __name__ == "__main__":
    with open_client(sys.argv[1]) as client:
        PortWindow(client, int(sys.argv[2])).mainloop()
