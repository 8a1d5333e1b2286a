"""Records on disk → MLflow: one run per record, nested under one run per invocation of the workflow.

A separate process, the follower, logs new records while jobs run. If the tracking server cannot be reached or the follower is
killed, records stay in ``records/``, and the next follower logs them. For each tracking URI a ledger lists the records that
are logged already. MLflow is imported only if there is something to log, because its import takes seconds.
"""

from ibsgl.tracking.follower import Tracker, flush
from ibsgl.tracking.ledger import pending_records, store_file, tracking_uri

__all__ = ["Tracker", "flush", "pending_records", "store_file", "tracking_uri"]
