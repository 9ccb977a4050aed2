"""The ledger, in SQLite: `Calls` keeps every reply that was paid for, `Rows` each prompt's outcome.

Both need a local disk: WAL shares memory between processes, which network file systems do not.
"""

from tenet.ledger._file import atomic, explain
from tenet.ledger._lock import in_use
from tenet.ledger.calls import Calls, StoredReply
from tenet.ledger.rows import DROPPED, Counts, Row, Rows

__all__ = ["DROPPED", "Calls", "Counts", "Row", "Rows", "StoredReply", "atomic", "explain", "in_use"]
