"""The exception types of the pipeline. A message says what happened, to which thing, and what to do.

PipelineError                 exit code
├── InputError                2   the job file, the source or an option is wrong; nothing was sent
│   ├── JobError                  the job file is wrong
│   ├── SourceError               the source is wrong
│   └── DatabaseError             the database or one of its tables is wrong
├── Busy                      3   another driver is planning this job
├── Stopped                   3   the run cannot continue now; it is safe to run the command again
│   ├── AccountStopped            the API refuses the account: key, permission or billing
│   ├── RunEnded                  another driver ended the run: it was canceled, or its budget is used up
│   └── ApiUnreachable            the API's address gave no response, or no usable one
│       ├── NoAnswer                  no response arrived
│       └── NotTheApi                 the response is not from the API: a login page, a cache, a wrong address
├── LostRace                  3   another driver changed the batch or lease that this driver was about to change
└── Interrupted               130 Ctrl-C or SIGTERM; it is safe to run the command again
    └── Completed                 the interrupt arrived after all work was finished

RowProblem                    none: it concerns one row, which becomes `invalid`
"""


class PipelineError(Exception):
    """Base class of the pipeline's errors. `str()` gives the sentence that the user reads.

    exit_code: the exit code of a command that ends with this error.
    """

    exit_code = 3


class InputError(PipelineError):
    """The job file, the source or an option is wrong; nothing was sent."""

    exit_code = 2


class JobError(InputError):
    """The job file is wrong: its YAML, a section, a field or a template."""


class SourceError(InputError):
    """The source cannot be read, or its key columns do not identify the rows."""


class DatabaseError(InputError):
    """The database, or one of its tables, cannot be used."""


class Busy(PipelineError):
    """Another driver is planning this job; only one driver plans a job at a time."""


class Stopped(PipelineError):
    """The run stopped early; running the same command again continues it."""


class AccountStopped(Stopped):
    """The API refuses this account (key, permission or billing), so nothing more is sent."""


class RunEnded(Stopped):
    """Another driver ended this run: it was canceled, or its budget is used up."""


class ApiUnreachable(Stopped):
    """The API's address gave no response, or a response that asks the client to retry later (5xx, 429)."""


class NoAnswer(ApiUnreachable):
    """No response arrived from the API's address; other calls would time out as well."""


class NotTheApi(ApiUnreachable):
    """The response did not come from the API: a login page, a proxy's cache, a wrong address."""


class NotFound(Stopped):
    """The API does not know this batch, model or file, or no longer has the batch's results."""


class LostRace(PipelineError):
    """Another driver moved or claimed the batch, or took over the lease, after this driver read it."""


class Interrupted(PipelineError):
    """The process was asked to stop, by Ctrl-C or SIGTERM."""

    exit_code = 130


class Completed(Interrupted):
    """The process was asked to stop after all work was finished. The message says what was stored."""


class RowProblem(Exception):
    """One row cannot be rendered as a request. The message is the reason; the other rows continue."""
