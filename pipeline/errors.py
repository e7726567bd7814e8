"""What can go wrong, as types; each message says what happened, to which thing, and what to do.

PipelineError                 exit code
├── InputError                2   the job file, the source or an option is wrong; nothing was sent
│   ├── JobError                  the job file
│   ├── SourceError               the rows
│   └── DatabaseError             the database, or a table in it
├── Busy                      3   another driver is planning this job
├── Stopped                   3   the run cannot go on now; it is safe to run again
│   ├── AccountStopped            the API refuses our account: key, permission, billing
│   ├── RunEnded                  another driver ended the run: canceled, or its budget is spent
│   └── ApiUnreachable            no answer, or none of use, from the API's address
│       ├── NoAnswer                  nothing came at all
│       └── NotTheApi                 what came is not the API's: a login page, a cache, a wrong address
├── LostRace                  3   another driver moved what we were about to move
└── Interrupted               130 Ctrl-C or SIGTERM; it is safe to run again
    └── Completed                 it came after all had been done
"""


class PipelineError(Exception):
    """Base of all errors that are ours. `str()` is the sentence a user reads; exit_code is the process's."""

    exit_code = 3


class InputError(PipelineError):
    """The job file, the source or an option is wrong; nothing was sent."""

    exit_code = 2


class JobError(InputError):
    """The job file cannot be used as it is."""


class SourceError(InputError):
    """The rows cannot be read, or their keys do not identify them."""


class DatabaseError(InputError):
    """The database, or a table in it, cannot be used."""


class Busy(PipelineError):
    """Another driver is planning this job."""


class Stopped(PipelineError):
    """The run stops before its end; the same command again goes on."""


class AccountStopped(Stopped):
    """The API refuses what this account asks for; sending more would not help."""


class RunEnded(Stopped):
    """Another driver ended this run."""


class ApiUnreachable(Stopped):
    """No answer came from the API's address, or one that says to come back later (5xx, 429)."""


class NoAnswer(ApiUnreachable):
    """Nothing came from the API's address: other calls would wait as long in vain."""


class NotTheApi(ApiUnreachable):
    """What answered is not the API: a login page, a proxy's cache, a wrong address."""


class LostRace(PipelineError):
    """Somebody else moved a batch, or took it or our lease, between our look and our move."""


class Interrupted(PipelineError):
    """A person or the system asked us to stop."""

    exit_code = 130


class Completed(Interrupted):
    """A person or the system asked us to stop after all had been done. The message says what is there."""


class RowProblem(Exception):
    """This one row cannot be rendered; the message is the reason."""
