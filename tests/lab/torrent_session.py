"""A session of libtorrent that keeps port 6881 open, until so many of its requests have succeeded or failed. Prints
its alerts. Run by the system's own Python, which is what Debian's python3-libtorrent is for.
"""

from __future__ import annotations

import importlib
import json
import sys


def keep_port(results: int) -> None:
    libtorrent = importlib.import_module("libtorrent")
    categories = libtorrent.alert.category_t
    session = libtorrent.session(
        {
            "listen_interfaces": "0.0.0.0:6881",
            "enable_natpmp": True,
            "enable_upnp": False,
            "enable_lsd": False,
            "enable_dht": False,
            "alert_mask": categories.port_mapping_notification | categories.port_mapping_log_notification,
        }
    )
    while results > 0:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            print(json.dumps([type(alert).__name__, alert.message()]), flush=True)
            results -= isinstance(alert, libtorrent.portmap_alert | libtorrent.portmap_error_alert)
    # The end of the session closes its port.


if __name__ == "__main__":
    keep_port(int(sys.argv[1]))
