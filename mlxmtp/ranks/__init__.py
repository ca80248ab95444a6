"""Several processes, one on each machine, that run one model: each holds a part of the trunk and sees every token.

All ranks run the same turns. Rank 0 leads: it is the process that the user talks to, it starts the others, and what
depends on a clock, on chance or on the user is decided there (docs/several-macs.md).
"""

from mlxmtp.ranks.hosts import Hosts, local_hosts, read_hosts
from mlxmtp.ranks.ranks import OutOfStepError, Ranks

__all__ = ["Hosts", "OutOfStepError", "Ranks", "local_hosts", "read_hosts"]
