"""Peers: other libraries' accelerations, run beside Festina's for comparison.

`peers_for(pipe, steps)` lists those that are installed and made for a pipeline, `running(pipe, peer)` runs it by one of
them and takes it off again, `audit(pipe, peer, render)` finds out whether that saved anything and left nothing behind.
Nothing else in Festina needs a peer. See docs/peers.md for what agrees with Festina's own methods and what does not.
"""

from festina.peers.auditing import Audit, audit
from festina.peers.peer import Peer, PeerError
from festina.peers.switching import Running, calibrated, peer_named, peers_for, running

__all__ = ["Audit", "Peer", "PeerError", "Running", "audit", "calibrated", "peer_named", "peers_for", "running"]
