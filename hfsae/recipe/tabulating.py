"""The stage of a run that tables how latents go with labels of documents."""

import json

from ..machine.files import write_whole
from ..machine.names import COLUMNS, COLUMNS_REPORT, FEATURES
from ..machine.seal import sealed
from ..machine.weights import stamp
from .job import Job


def tabulate(job: Job) -> None:
    """Write features/columns.json and, to read, columns.md."""
    table = job.inputs.tabulate(job)
    (job.folder / FEATURES).mkdir(exist_ok=True)  # there may be no examples
    record = sealed({**table.to_dict(), **stamp(job.folder)})
    write_whole(job.folder / COLUMNS_REPORT, table.table())
    write_whole(job.folder / COLUMNS, json.dumps(record, indent=1) + "\n")
